"""``slurmbus requeue``."""

from __future__ import annotations

import click

from slurmbus.commands.console import note
from slurmbus.commands.follow import tell_waiting, wait_for_agent
from slurmbus.commands.options import open_site, site_options
from slurmbus.errors import check_requeue
from slurmbus_protocol.messages import Record


@click.command("requeue")
@site_options
@click.option("--reason", default="", help="Kept with the job.")
@click.option("--task", type=click.IntRange(min=0), help="Which task of a job array.")
@click.argument("job", metavar="KEY|JOBID")
def command(site: str | None, *, local: bool, reason: str, task: int | None, job: str) -> None:
    """Send a running job back to Slurm's queue: it starts again from its beginning.

    Only a job that was submitted with --requeue. Slurm is told once; a request that no agent takes within ten minutes
    is void.
    """
    client = open_site(site, local=local)
    record = client.find(job)
    if record.tasks and task is None and "_" in job:  # as Slurm names one of them
        task = record.task
    control = client.requeue(record.key, reason, tell=tell_waiting, task=task)

    def is_answered(record: Record) -> bool:
        refused = record.refused is not None and record.refused.id == control
        return refused or any(one.id == control and one.outcome for one in record.requeues)

    shown = wait_for_agent(client, record.key, is_answered, record.task if task is None else task)
    if shown is not None and check_requeue(shown, control):
        note(f"job {record.key} goes back to the queue")
