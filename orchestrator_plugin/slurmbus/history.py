"""Jobs by state over time, worked out from what their records say of when things happened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState


@dataclass(frozen=True, slots=True)
class History:
    """One figure of each kind for each bucket; the last bucket ends now."""

    end: float
    """When the last bucket ends, in seconds since 1970."""
    step: float
    """Seconds of a bucket."""
    waiting: tuple[int, ...]
    """Jobs that were accepted and hadn't started, at the bucket's end."""
    running: tuple[int, ...]
    completed: tuple[int, ...]
    """Jobs that ended so within the bucket."""
    failed: tuple[int, ...]
    """Jobs that ended within the bucket and neither completed nor were cancelled."""
    cancelled: tuple[int, ...]


def over_time(records: Iterable[Record], now: float, *, step: float = 15.0, buckets: int = 240) -> History:
    """Work out the last ``buckets`` buckets of ``step`` seconds; of a requeued job its last start counts."""
    end = (now // step + 1) * step
    begin = end - step * buckets
    waiting, running = [0] * (buckets + 1), [0] * (buckets + 1)
    ended = {kind: [0] * (buckets + 1) for kind in ("completed", "failed", "cancelled")}

    def index(at: float) -> int:
        return min(buckets, max(0, int((at - begin) // step)))

    def between(line: list[int], since: float, until: float) -> None:
        if until >= begin:
            line[index(since)] += 1
            line[index(until)] -= 1

    for record in records:
        over = ended_at(record)
        last = over if over is not None else end + step
        if last < begin:
            continue
        started = started_at(record)
        between(waiting, record.created_at, min(last, started) if started is not None else last)
        if started is not None:
            between(running, started, max(started, last))
        if over is not None:
            ended[_kind(record.state)][index(over)] += 1
    return History(
        end=end,
        step=step,
        waiting=tuple(accumulate(waiting[:-1])),
        running=tuple(accumulate(running[:-1])),
        completed=tuple(ended["completed"][:-1]),
        failed=tuple(ended["failed"][:-1]),
        cancelled=tuple(ended["cancelled"][:-1]),
    )


def _kind(state: JobState) -> str:
    if state is JobState.COMPLETED:
        return "completed"
    return "cancelled" if state is JobState.CANCELLED else "failed"


def started_at(record: Record) -> float | None:
    """Tell when a job started, by its runner if that has spoken, else by Slurm."""
    if record.state in {JobState.ACCEPTED, JobState.STAGING, JobState.SUBMITTING, JobState.PENDING}:
        return None
    of_runner = next((start.started_at for start in reversed(record.starts) if start.started_at is not None), None)
    return of_runner if of_runner is not None else record.start_time


def ended_at(record: Record) -> float | None:
    """Tell when a job ended; None when it hasn't."""
    if not record.state.is_final:
        return None
    return record.end_time if record.end_time is not None else record.updated_at
