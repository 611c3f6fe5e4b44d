"""``slurmbus cancel``."""

from __future__ import annotations

import click

from slurmbus.commands.console import note
from slurmbus.commands.follow import tell_waiting, wait_for_agent
from slurmbus.commands.options import open_site, site_options
from slurmbus.errors import UnknownJob
from slurmbus.site import KEY_LENGTH


@click.command("cancel")
@site_options
@click.option("--reason", default="", help="Kept with the job.")
@click.argument("job", metavar="KEY|JOBID")
def command(site: str | None, *, local: bool, reason: str, job: str) -> None:
    """Ask for a job's end.

    The request is kept until the job has ended, also when no agent runs at the moment, or when the job comes back after
    a requeue.
    """
    client = open_site(site, local=local)
    key = job.strip().upper()
    try:
        record = client.find(job)
    except UnknownJob:
        if len(key) < KEY_LENGTH:
            raise
        # Submitted, but no agent has taken it yet: the cancel waits for it.
    else:
        key = record.key
        if record.state.is_final:
            note(f"{key} has already ended: {record.state}")
            return
    client.cancel(key, reason, tell=tell_waiting)
    note(f"asked site {client.site} to end {key}")
    wait_for_agent(client, key, lambda record: record.cancel is not None)
