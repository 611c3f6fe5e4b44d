"""How long the system took to be right again after each fault, and how long a site was without a leader."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from chaos.faults import STEP_KILLED
from chaos.history import FaultHistory, JobHistory, RunHistory
from slurmbus_protocol.states import JobState

STARTED = {JobState.RUNNING, JobState.COMPLETING}
LEADER_FAULTS = ("agent killed (leader)", "agent frozen (leader)", "agent stopped")
SEVERAL, NONE = "(several at once)", "(no fault)"


@dataclass(frozen=True)
class Wrong:
    """A time in which a record said less than was true."""

    job: str
    what: str
    begin: float
    end: float


@dataclass(frozen=True)
class Recovery:
    """The longest recovery after the faults of one kind."""

    kind: str
    seconds: float
    job: str
    what: str


def wrong_times(job: JobHistory) -> list[Wrong]:
    """Give when this job's record wasn't right: from the truth's change to the record's."""
    found = []
    if job.accepted is not None and job.records:
        found.append(Wrong(job.plan.id, "taken", job.accepted, job.records[0].time))
    ran = [stored for stored in job.records if stored.record.state in STARTED or stored.record.state.is_final]
    if job.executions and ran:
        found.append(Wrong(job.plan.id, "running", job.executions[0].begin, ran[0].time))
    final = [stored for stored in job.records if stored.record.state.is_final]
    ended = [row.end for row in job.rows if row.end is not None]
    if final and ended:
        # Accounting's times are whole seconds, rounded down; a payload's own note is more exact.
        last = max(ended)
        notes = [run.end for run in job.executions if run.end is not None and run.end >= last]
        found.append(Wrong(job.plan.id, "ended", max([last, *notes]), final[0].time))
    return [wrong for wrong in found if wrong.end > wrong.begin]


def delays(run: RunHistory) -> Iterator[tuple[str, float, Wrong]]:
    """Give, for each time in which a record was wrong, the fault's kind and how long it went on after the fault.

    Only what one fault alone explains has its name: a time that touches a second one is nobody's in particular.
    """
    faults = [fault for fault in run.faults if fault.kind != STEP_KILLED]  # records don't notice those
    for job in run.jobs:
        for wrong in wrong_times(job):
            touching = [fault for fault in faults if fault.begin < wrong.end and fault.end > wrong.begin]
            kind = touching[0].kind if len(touching) == 1 else SEVERAL if touching else NONE
            yield kind, wrong.end - max([wrong.begin, *(min(fault.end, wrong.end) for fault in touching)]), wrong


def recoveries(run: RunHistory) -> list[Recovery]:
    """Give the longest delay for each kind of fault, the longest first."""
    longest: dict[str, Recovery] = {}
    for kind, seconds, wrong in delays(run):
        if kind not in longest or seconds > longest[kind].seconds:
            longest[kind] = Recovery(kind, seconds, wrong.job, wrong.what)
    return sorted(longest.values(), key=lambda one: -one.seconds)


def takeovers(run: RunHistory) -> dict[str, list[float]]:
    """Give, for each kind of fault of the leader, how long it took until another agent held the lease."""
    found: dict[str, list[float]] = defaultdict(list)
    for fault in run.faults:
        if fault.kind in LEADER_FAULTS:
            seconds = _takeover(run, fault)
            if seconds is not None:
                found[fault.kind].append(seconds)
    return dict(found)


def _takeover(run: RunHistory, fault: FaultHistory) -> float | None:
    """Give None when another fault got into its way, or the same agent came back first."""
    before = [seen for seen in run.leases if seen.time <= fault.begin]
    after = next((seen for seen in run.leases if seen.time > fault.begin), None)
    if not before or after is None or after.agent_id == before[-1].agent_id:
        return None
    disturbed = any(
        other is not fault
        and other.begin < after.time
        and other.end > fault.begin
        and other.kind.startswith(("bus", "login", "agent", "both"))
        for other in run.faults
    )
    return None if disturbed else after.time - fault.begin
