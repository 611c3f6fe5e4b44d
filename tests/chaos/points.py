"""The labelled points of the submit, relay and finish paths, in the agent and in its scheduler's process.

Product code knows nothing of them: `pointed_agent` wraps the functions that are named here. Standard library only,
since this is installed beside the agent. A test sees to it that every name still exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

FOLDER = "/home/alice/chaos-points"
ARMED = f"{FOLDER}/armed"
REACHED = f"{FOLDER}/reached"

Trigger = Literal["job", "cancel", "takeover", "idle"]
"""What makes a point be reached: a job, a job that is cancelled, the other agent's death, or nothing but time."""


def _always(_: tuple[Any, ...]) -> bool:
    return True


def _state(*wanted: str) -> Callable[[tuple[Any, ...]], bool]:
    """Fit when the call's first argument is a record in one of these states."""
    return lambda arguments: arguments[1].state.value in wanted


def _final(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[1].state.is_final)


def _verdict(arguments: tuple[Any, ...]) -> bool:
    return arguments[1].verdict is not None


def _heard_end(arguments: tuple[Any, ...]) -> bool:
    """Fit when a job hears from the controller that Slurm's state is final."""
    observation = getattr(arguments[1], "observation", None)
    return observation is not None and observation.state in ("COMPLETED", "FAILED", "CANCELLED")


def _ended(arguments: tuple[Any, ...]) -> bool:
    record = arguments[1]
    return bool(record.starts) and record.starts[-1].ended_at is not None and not record.state.is_final


def _cancel_kept(arguments: tuple[Any, ...]) -> bool:
    record = arguments[1]
    return record.cancel is not None and not record.state.is_final


def _acknowledges(arguments: tuple[Any, ...]) -> bool:
    return str(arguments[1]).startswith("$JS.ACK.") and arguments[2] == b"+ACK"


def _chunk(arguments: tuple[Any, ...]) -> bool:
    return ".log." in arguments[1] or ".msg." in arguments[1]


def _record(arguments: tuple[Any, ...]) -> bool:
    return ".job." in arguments[1]


def _lease(arguments: tuple[Any, ...]) -> bool:
    subject = str(arguments[1])
    return subject.startswith("$KV.agents.") and subject.count(".") == SITE_KEY_DOTS


SITE_KEY_DOTS = 2
"""The key of a site's lease is `$KV.agents.<site>`; a standby's has its name behind."""


@dataclass(frozen=True)
class Point:
    """One place in the product."""

    label: str
    module: str
    name: str
    """The function's qualified name in its module."""
    when: Literal["before", "after"]
    fits: Callable[[tuple[Any, ...]], bool] = _always
    """Tells by the positional arguments (self first) whether this call counts."""
    trigger: Trigger = "job"
    child: bool = False
    """True when it lies in the scheduler's process."""


_A = "slurmbus_agent"
_RECORDS = f"{_A}.records"

POINTS: tuple[Point, ...] = (
    # The submit path
    Point("request pulled", f"{_A}.intake", "Intake._handle_one", "before"),
    Point("before the record", _RECORDS, "RecordStore.create", "before", _state("ACCEPTED")),
    Point("after the record", _RECORDS, "RecordStore.create", "after", _state("ACCEPTED")),
    Point("before the spool", f"{_A}.spool_job", "JobDir.create", "before"),
    Point("spool written", f"{_A}.spool_job", "JobDir.create", "after"),
    Point("before the acknowledgement", "slurmbus_protocol.bus", "Bus.request", "before", _acknowledges),
    Point("after the acknowledgement", "slurmbus_protocol.bus", "Bus.request", "after", _acknowledges),
    Point("before staging", f"{_A}.staging", "Stager.stage", "before"),
    Point("after staging", f"{_A}.staging", "Stager.stage", "after"),
    Point("SUBMITTING written", _RECORDS, "RecordStore.write", "after", _state("SUBMITTING")),
    Point("before the submit call", f"{_A}.scheduler.process", "ChildScheduler.submit", "before"),
    Point("before the submit's RPC", f"{_A}.scheduler.native", "NativeBackend.submit", "before", child=True),
    Point("after the submit's RPC", f"{_A}.scheduler.native", "NativeBackend.submit", "after", child=True),
    Point("id known", f"{_A}.scheduler.process", "ChildScheduler.submit", "after"),
    Point("id written", _RECORDS, "RecordStore.write", "after", _state("PENDING")),
    # The relay path
    Point("before the hello", f"{_A}.linking", "JobLinks.hello", "before"),
    Point("after the hello", f"{_A}.linking", "JobLinks.hello", "after"),
    Point("claim written", _RECORDS, "RecordStore.write", "after", _state("RUNNING")),
    Point("before a chunk", "slurmbus_protocol.bus", "Bus.publish", "before", _chunk),
    Point("before a record's publish", "slurmbus_protocol.bus", "Bus.publish", "before", _record),
    Point("after a record's publish", "slurmbus_protocol.bus", "Bus.publish", "after", _record),
    Point("after a chunk", "slurmbus_protocol.bus", "Bus.publish", "after", _chunk),
    # The finish path
    Point("end reported", f"{_A}.linking", "JobLinks.ended", "before"),
    Point("end written", _RECORDS, "RecordStore.write", "after", _ended),
    Point("before the drain", f"{_A}.job", "Job.catch_up", "before"),
    Point("after the drain", f"{_A}.job", "Job.catch_up", "after"),
    Point("before the outputs", f"{_A}.staging", "Stager.collect", "before"),
    Point("after the outputs", f"{_A}.staging", "Stager.collect", "after"),
    Point("verdict heard", f"{_A}.job", "Job.post", "before", _heard_end),
    Point("verdict written", _RECORDS, "RecordStore.write", "after", _verdict),
    Point("before the final record", _RECORDS, "RecordStore.write", "before", _final),
    Point("after the final record", _RECORDS, "RecordStore.write", "after", _final),
    # The lease
    Point("before a renewal", f"{_A}.lease", "Lease.renew", "before", trigger="idle"),
    Point("after a renewal", f"{_A}.lease", "Lease.renew", "after", trigger="idle"),
    Point("before a renewal's publish", "slurmbus_protocol.bus", "Bus.publish", "before", _lease, trigger="idle"),
    Point("after a renewal's publish", "slurmbus_protocol.bus", "Bus.publish", "after", _lease, trigger="idle"),
    Point("lease taken", f"{_A}.lease", "Lease.acquire", "after", trigger="takeover"),
    Point("before a record is taken over", _RECORDS, "RecordStore.take_over", "before", trigger="takeover"),
    Point("after a record is taken over", _RECORDS, "RecordStore.take_over", "after", trigger="takeover"),
    # Cancels
    Point("cancel pulled", f"{_A}.intake", "Intake._take_cancel", "before", trigger="cancel"),
    Point("cancel written", _RECORDS, "RecordStore.write", "after", _cancel_kept, trigger="cancel"),
    Point("cancel answered", f"{_A}.intake", "Intake._take_cancel", "after", trigger="cancel"),
    Point("before the cancel call", f"{_A}.scheduler.process", "ChildScheduler.cancel", "before", trigger="cancel"),
    Point(
        "before the cancel's RPC",
        f"{_A}.scheduler.native",
        "NativeBackend.cancel",
        "before",
        trigger="cancel",
        child=True,
    ),
    Point(
        "after the cancel's RPC",
        f"{_A}.scheduler.native",
        "NativeBackend.cancel",
        "after",
        trigger="cancel",
        child=True,
    ),
)

BACKENDS = {
    "native": (f"{_A}.scheduler.native", "NativeBackend"),
    "commands": (f"{_A}.scheduler.commands", "CommandsBackend"),
}


def of_child(kind: str) -> tuple[Point, ...]:
    """Give the points in the process of this kind of scheduler."""
    module, backend = BACKENDS[kind]
    return tuple(
        replace(point, module=module, name=f"{backend}.{point.name.rpartition('.')[2]}")
        for point in POINTS
        if point.child
    )
