"""``slurmbus jobs``."""

from __future__ import annotations

import time

import click

from slurmbus.commands.console import note, show_json, show_table, state_colour
from slurmbus.commands.job_lines import COLUMNS, job_groups, job_line
from slurmbus.commands.options import json_option, open_site, site_options
from slurmbus.commands.view import record_json
from slurmbus.home import Home
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.messages import Record

RECENT = 86400.0


@click.command("jobs")
@site_options
@click.option("--all", "everything", is_flag=True, help="Also jobs that ended more than a day ago.")
@click.option("--tasks", is_flag=True, help="Each task of job arrays by itself, instead of a line for each array.")
@json_option
def command(site: str | None, *, local: bool, everything: bool, tasks: bool, as_json: bool) -> None:
    """List jobs, newest first; of all sites unless one is named."""
    names = [profile.name for profile in Home.default().sites()]
    if site is None and not local and len(names) > 1:
        records = _of_all(names)
    else:
        records = open_site(site, local=local).records()
    now = time.time()
    shown = [
        record
        for record in records
        if everything or not record.state.is_final or now - (record.end_time or record.updated_at) < RECENT
    ]
    if as_json:
        shown.sort(key=lambda record: (record.key, -record.task), reverse=True)
        show_json([record_json(record) for record in shown])
        return
    lines = [job_line(group, now) for group in job_groups(shown, tasks=tasks)]
    show_table(COLUMNS, [line.cells for line in lines], [state_colour(line.state) for line in lines])


def _of_all(names: list[str]) -> list[Record]:
    """Read the jobs of every site that can be reached; BusUnreachable when none can."""
    records: list[Record] = []
    problems: list[BusUnreachable] = []
    for name in names:
        try:
            records.extend(open_site(name, local=False).records())
        except BusUnreachable as error:
            problems.append(error)
            note(f"slurmbus: site {name}: {error.message}", colour="red")
    if len(problems) == len(names):
        raise problems[0]
    return records
