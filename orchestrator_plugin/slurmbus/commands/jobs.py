"""``slurmbus jobs``."""

from __future__ import annotations

import time
from collections import Counter

import click

from slurmbus.commands.console import duration, note, show_json, show_table, state_colour
from slurmbus.commands.options import json_option, open_site, site_options
from slurmbus.commands.view import record_json
from slurmbus.home import Home
from slurmbus_protocol.arrays import compact, slurm_id
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

RECENT = 86400.0
COLUMNS = ("KEY", "ID", "NAME", "STATE", "PARTITION", "NODES", "AGE", "ELAPSED", "REASON", "SITE")


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
    records.sort(key=lambda record: (record.key, -record.task), reverse=True)
    now = time.time()
    shown = [
        record
        for record in records
        if everything or not record.state.is_final or now - (record.end_time or record.updated_at) < RECENT
    ]
    if as_json:
        show_json([record_json(record) for record in shown])
        return
    lines = [[record] for record in shown] if tasks else _arrays_together(shown)
    show_table(
        COLUMNS,
        [_row(line[0], now) if len(line) == 1 else _array_row(line, now) for line in lines],
        [state_colour(_most_urgent(line)) for line in lines],
    )


def _arrays_together(records: list[Record]) -> list[list[Record]]:
    """Put the tasks of each array into one line."""
    lines: dict[str, list[Record]] = {}
    for record in records:
        lines.setdefault(record.key, []).append(record)
    return list(lines.values())


def _most_urgent(records: list[Record]) -> JobState:
    """Give the state that a person should see first: of what goes on, then of what went wrong."""
    states = [record.state for record in records]
    return min(states, key=lambda state: (state.is_final, state is JobState.COMPLETED))


def _array_row(records: list[Record], now: float) -> tuple[str, ...]:
    """Give the line of an array: how many tasks are in which state."""
    first = records[0]
    states = Counter(record.state for record in records)
    started = min((record.start_time for record in records if record.start_time is not None), default=None)
    ended = None
    if all(record.state.is_final for record in records):
        ended = max((record.end_time for record in records if record.end_time is not None), default=None)
    return (
        first.key,
        ",".join(dict.fromkeys(f"{record.job_id}_" for record in records if record.job_id)),
        f"{first.name}[{compact(record.task for record in records)}]",
        ", ".join(f"{count} {state}" for state, count in states.most_common()),
        first.partition or first.options.partition or "",
        "",
        duration(now - first.created_at),
        duration((ended or now) - started if started is not None else None),
        "",
        first.site,
    )


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


def _row(record: Record, now: float) -> tuple[str, ...]:
    started, ended = record.start_time, record.end_time
    elapsed = (ended or now) - started if started is not None and (ended or not record.state.is_final) else None
    return (
        f"{record.key}.{record.task}" if record.tasks else record.key,
        slurm_id(record),
        f"{record.name}[{record.task_name}]" if record.task_name else record.name,
        record.state.value,
        record.partition or record.options.partition or "",
        record.node_list or "",
        duration(now - record.created_at),
        duration(elapsed),
        "" if record.reason in {None, "None"} else str(record.reason),
        record.site,
    )
