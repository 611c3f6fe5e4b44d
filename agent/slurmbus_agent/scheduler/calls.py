"""The calls that cross between the agent and the scheduler's child process.

A frame is four bytes of length, big-endian, and that many bytes of msgpack. The agent writes :class:`Call` frames, the
child answers each with one :class:`Answer`, in order; its very first answer, with id 0, says whether it could start and
which version of Slurm it knows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from slurmbus_agent.scheduler.base import (
    AccountingRow,
    BatchJob,
    NoAccounting,
    Observation,
    OutcomeUnknown,
    Refused,
    SchedulerError,
    Unavailable,
)
from slurmbus_protocol.messages import Partition

MAX_FRAME = 64 * 1024 * 1024
"""Bytes of a frame; 10,000 observations are about 5 MB, more than this is no frame of ours."""
HEADER = 4
STARTED = 0
"""The id of the child's first answer."""


class HungUp(BaseException):
    """Whoever wanted the answer to a call is gone; the call was given up."""


class Backend(Protocol):
    """What the child runs: :class:`slurmbus_agent.scheduler.base.Scheduler` without the waiting."""

    version: str
    """Slurm's version as its client knows it, e.g. ``24.11.5``; nothing when it doesn't tell."""

    def ping(self) -> None:
        """Return when the controller answers."""
        ...

    def submit(self, job: BatchJob) -> int:
        """Submit a job and give its id."""
        ...

    def jobs(self) -> list[Observation]:
        """Give all jobs of this user."""
        ...

    def job(self, job_id: int, task: int | None = None) -> Observation | None:
        """Give one job or one task of an array, or None when the controller doesn't know it."""
        ...

    def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Give what accounting knows of these jobs."""
        ...

    def accounting_backlog(self) -> int:
        """Give how many messages the controller holds for the accounting daemon."""
        ...

    def cancel(self, job_id: int, name: str) -> bool:
        """Cancel the job, or the tasks of an array, if it has this name."""
        ...

    def requeue(self, job_id: int, name: str) -> bool:
        """Send the running job, or one task of an array, back to the queue if it has this name."""
        ...

    def partitions(self) -> list[Partition]:
        """Give the partitions that this user can see."""
        ...


class Kind(NamedTuple):
    """The types of one kind of call."""

    arguments: Any
    result: Any


KINDS: dict[str, Kind] = {
    "ping": Kind(tuple[()], None),
    "submit": Kind(tuple[BatchJob], int),
    "jobs": Kind(tuple[()], list[Observation]),
    "job": Kind(tuple[int, int | None], Observation | None),
    "accounting": Kind(tuple[list[tuple[int, str]], float], list[AccountingRow]),
    "accounting_backlog": Kind(tuple[()], int),
    "cancel": Kind(tuple[int, str], bool),
    "requeue": Kind(tuple[int, str], bool),
    "partitions": Kind(tuple[()], list[Partition]),
}
"""Every method of a backend."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One call of a backend's method."""

    id: int
    kind: str
    arguments: msgspec.Raw
    not_after: float | None = None
    """Seconds of CLOCK_BOOTTIME at which the leader's lease is over; the call isn't made from then on."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What came of a call."""

    id: int
    outcome: str
    """``ok``, or the ``code`` of one of ERRORS."""
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    message: str = ""
    hint: str = ""


ERRORS: dict[str, type[SchedulerError]] = {
    error.code: error for error in (Refused, Unavailable, OutcomeUnknown, NoAccounting)
}

_encoder = msgspec.msgpack.Encoder()


def pack(content: Call | Answer) -> bytes:
    """Give the bytes of a frame."""
    body = _encoder.encode(content)
    return len(body).to_bytes(HEADER, "big") + body


def raw(value: object) -> msgspec.Raw:
    """Encode arguments or a result."""
    return msgspec.Raw(_encoder.encode(value))


def result_of(kind: str, answer: Answer) -> Any:
    """Give the result of a call, or raise what the child raised."""
    _check(answer)
    return msgspec.msgpack.decode(answer.result, type=KINDS[kind].result)


def version_of(started: Answer) -> str:
    """Give Slurm's version from a child's first answer, or raise what the child raised."""
    _check(started)
    return msgspec.msgpack.decode(started.result, type=str)


def _check(answer: Answer) -> None:
    error = ERRORS.get(answer.outcome)
    if error is not None:
        raise error(answer.message, hint=answer.hint)


def failure(call_id: int, error: SchedulerError) -> Answer:
    """Give the answer that carries an error."""
    return Answer(call_id, error.code, message=error.message, hint=error.hint)
