"""A job's way from request to result: what took how long. The dashboard's page works out the same by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from slurmbus.history import ended_at, started_at
from slurmbus_protocol.messages import Record


class Step(NamedTuple):
    """One part of the way."""

    what: str
    begin: float
    end: float | None
    """None while it goes on."""


def steps_of(record: Record) -> list[Step]:
    """Give the steps of a job in the order of time, as far as its record knows them (pure)."""
    return [*_before(record), *_starts(record), *_after(record)]


def _before(record: Record) -> Iterator[Step]:
    times = record.timings
    accepted = times.get("accepted", record.created_at)
    yield from _step("request on its way", times.get("requested"), accepted)
    yield from _step("environment made ready", accepted, times.get("environment"))
    yield from _step("staged", times.get("environment", accepted), times.get("staged"))
    words = "submitted" if record.scheduler == "local" else "submitted to Slurm"
    yield from _step(words, times.get("staged", accepted), times.get("submitted"))


def _starts(record: Record) -> Iterator[Step]:
    times = record.timings
    waits = times.get("submitted") or record.submit_time or times.get("staged") or record.created_at
    for start in record.starts:
        many = f" (start {start.number + 1})" if len(record.starts) > 1 else ""
        began = start.started_at if start.started_at is not None else started_at(record)
        yield from _step(f"in the queue{many}", waits, began)
        if began is not None:
            end = start.ended_at if start.ended_at is not None else ended_at(record)
            yield Step(f"ran on {start.node}{many}", began, None if end is None else max(began, end))
            waits = end if end is not None else began
    if not record.starts:
        began = started_at(record)
        if began is not None:
            yield from _step("in the queue", waits, began)
        elif not record.state.is_final:
            yield Step("in the queue", waits, None)


def _after(record: Record) -> Iterator[Step]:
    times = record.timings
    end = record.starts[-1].ended_at if record.starts else None
    yield from _step("end known to the agent", end, times.get("ended"))
    yield from _step("output complete", times.get("ended"), times.get("drained"))
    yield from _step("files brought back", times.get("drained"), times.get("outputs"))
    if record.state.is_final:
        last = times.get("outputs") or times.get("drained") or times.get("ended")
        yield from _step("result", last, record.updated_at)


def _step(what: str, begin: float | None, end: float | None) -> Iterator[Step]:
    if begin is not None and end is not None:
        yield Step(what, begin, max(begin, end))
