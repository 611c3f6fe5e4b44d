"""A line for each job, or for each array: what ``slurmbus jobs`` and ``slurmbus top`` show of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from slurmbus.commands.console import duration
from slurmbus_protocol.arrays import compact, slurm_id
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

COLUMNS = ("KEY", "ID", "NAME", "STATE", "PARTITION", "NODES", "AGE", "ELAPSED", "REASON", "SITE")


class JobLine(NamedTuple):
    """One line."""

    cells: tuple[str, ...]
    """As the COLUMNS say."""
    state: JobState
    """By which the line is coloured."""


def job_groups(records: Iterable[Record], *, tasks: bool = False) -> list[list[Record]]:
    """Give the records of each line, newest first: one job, or the tasks of one array.

    Args:
        records: of the jobs.
        tasks: a line for each task of an array instead of one for the array.
    """
    newest = sorted(records, key=lambda record: (record.key, -record.task), reverse=True)
    return [[record] for record in newest] if tasks else _arrays_together(newest)


def job_line(records: list[Record], now: float) -> JobLine:
    """Give the line of one job, or of one array."""
    return JobLine(_row(records[0], now) if len(records) == 1 else _array_row(records, now), _most_urgent(records))


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
