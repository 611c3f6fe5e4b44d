"""Judges a run: compares what the witnesses say and counts how often each promise was broken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from chaos.faults import confuses_controller, may_double_a_submit
from chaos.history import Execution, FaultHistory, JobHistory, RunHistory, SlurmRow
from chaos.measures import SEVERAL, delays
from chaos.payload import LINE, OUTPUT_LINES
from slurmbus_agent.runner.claims import AGENT_NODE
from slurmbus_agent.runner.claims import parse as parse_claim
from slurmbus_agent.runner.protocol import EXIT_TWIN
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import FINAL, JobState, may_follow
from slurmbus_protocol.subjects import Stream

CANCEL_PATIENCE = 20.0
"""Seconds without any fault that an accepted cancel may take: the agent's repeats, Slurm's SIGTERM and KillWait."""
OVERLAP_OF_REQUEUED = 15.0
"""Seconds that a start on a node that nobody can reach may go on beside its successor, after the node is back."""
FORGETFUL = 6.0
"""slurmctld forgets what happened up to 5 s before it was killed (FACTS.md)."""
SOON = 15.0
"""Seconds after a single fault's end within which every record must be right."""
BUSY = 40.0
"""Seconds after a fault of the controller in which a submit that was under way may still turn up."""


class Promise(StrEnum):
    """What must never happen."""

    TWICE = "payloads run twice"
    AT_ONCE = "payloads run at the same time"
    LOST = "lost jobs"
    WRONG_STATE = "wrong final states"
    MISSING = "bytes missing"
    REPEATED = "bytes repeated"
    WRONG_BYTES = "bytes wrong"
    CANCEL = "cancelled jobs that went on"
    HISTORY = "records changed against the rules"
    TWIN = "twins without a cause"
    READER = "readers that failed"
    STEP = "Dagster steps told wrongly"
    AGENT = "agents that died by themselves"
    HARNESS = "faults that couldn't be done"
    POINT = "points that weren't reached"
    SLOW = "records right only after 15 s"
    OUTPUT = "output files that didn't come back"


@dataclass(frozen=True)
class Breach:
    """One promise broken once."""

    promise: Promise
    who: str
    words: str
    amount: int = 1


@dataclass
class Counts:
    """What the promises were kept over."""

    requests: int = 0
    accepted: int = 0
    jobs: int = 0
    """Slurm jobs, as accounting knows them."""
    starts: int = 0
    executions: int = 0
    turned_away: int = 0
    """Starts that ended at the claim, of twins and of jobs that Slurm started once more."""
    twins: int = 0
    requeues: int = 0
    cancels: int = 0
    steps: int = 0
    step_kills: int = 0
    expected: int = 0
    arrived: int = 0
    states: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """What the checker found."""

    counts: Counts
    breaches: list[Breach]

    def of(self, promise: Promise) -> int:
        """Give how often, or by how many bytes, a promise was broken."""
        return sum(breach.amount for breach in self.breaches if breach.promise is promise)


def check(run: RunHistory) -> Verdict:
    """Judge a run."""
    counts = _count(run)
    breaches = [breach for job in run.jobs for breach in check_job(job, run)]
    breaches += [Breach(Promise.STEP, step.id, step.problem) for step in run.steps if step.problem]
    breaches += [Breach(Promise.AGENT, "agent", death) for death in run.deaths]
    breaches += [Breach(Promise.HARNESS, "harness", problem) for problem in run.problems]
    breaches += [
        Breach(Promise.SLOW, wrong.job, f"{wrong.what} {seconds:.1f} s after {kind}")
        for kind, seconds, wrong in delays(run)
        if seconds > SOON and kind != SEVERAL
    ]
    breaches += [Breach(Promise.POINT, label, words) for label, words in run.unreached]
    for job in run.jobs:
        for start in {claim.start for claim in claims_of(job)}:
            for stream in Stream:
                counts.expected += len(_expected(job, start, stream) or b"")
        counts.arrived += sum(len(piece.data) for piece in job.pieces)
    return Verdict(counts, breaches)


def check_job(job: JobHistory, run: RunHistory) -> Iterator[Breach]:
    """Judge one job."""
    yield from _check_executions(job)
    yield from _check_record(job, run)
    yield from _check_history(job)
    yield from _check_bytes(job)
    yield from _check_bus(job)
    yield from _check_cancel(job, run)
    yield from _check_twins(job, run)
    yield from _check_output(job)
    if job.problem:
        yield Breach(Promise.READER, job.plan.id, job.problem)


# ---------------------------------------------------------------------- executions


def _check_executions(job: JobHistory) -> Iterator[Breach]:
    runs = job.executions
    if len(runs) > 1 and not job.plan.requeue:
        yield Breach(Promise.TWICE, job.plan.id, f"{len(runs)} executions: {_told(runs)}", len(runs) - 1)
    for earlier, later in pairwise(runs):
        patience = OVERLAP_OF_REQUEUED if job.plan.requeue else 0.0
        if earlier.over - later.begin > patience:
            yield Breach(Promise.AT_ONCE, job.plan.id, f"for {earlier.over - later.begin:.2f} s: {_told(runs)}")
    if len(runs) > len(claims_of(job)):
        yield Breach(Promise.TWICE, job.plan.id, f"an execution without a claim: {_told(runs)}")


def _told(runs: Iterable[Execution]) -> str:
    return ", ".join(f"job {run.job_id} on {run.node} from {run.begin:.2f} to {run.over:.2f}" for run in runs)


# ---------------------------------------------------------------------- the record


@dataclass(frozen=True)
class Claimed:
    """A claim of a runner."""

    start: int
    job_id: int
    node: str


def claims_of(job: JobHistory) -> list[Claimed]:
    """Give the starts that runners have claimed, in order."""
    found = []
    for start, text in sorted(job.spooled.claims.items()):
        job_id, node, _, _ = parse_claim(text)
        if node != AGENT_NODE:
            found.append(Claimed(start, job_id, node))
    return found


def _check_record(job: JobHistory, run: RunHistory) -> Iterator[Breach]:
    record = job.last
    if record is None:
        if job.accepted is not None:
            yield Breach(Promise.LOST, job.plan.id, "the request was accepted and there is no record")
        return
    if not record.state.is_final:
        yield Breach(Promise.LOST, job.plan.id, f"still {record.state}, {_rows_told(job.rows)}")
        return
    if job.finished is None and job.accepted is not None and not job.problem:
        yield Breach(Promise.READER, job.plan.id, f"the record is {record.state}, and following it didn't end")
    words = _wrong_state(job, record, run)
    if words:
        yield Breach(Promise.WRONG_STATE, job.plan.id, f"{words}; {_rows_told(job.rows)}; {_told(job.executions)}")
        return
    claims = claims_of(job)
    if claims and record.job_id != claims[-1].job_id and record.state is not JobState.LOST:
        words = f"the record names Slurm job {record.job_id}, the claim {claims[-1].job_id}"
        yield Breach(Promise.WRONG_STATE, job.plan.id, words)
    if record.state is JobState.FAILED and job.plan.exit_code and record.exit_code != job.plan.exit_code:
        done = job.executions[-1] if job.executions else None
        if done is not None and done.exit_code == job.plan.exit_code:
            words = f"exit code {record.exit_code}, not {job.plan.exit_code}"
            yield Breach(Promise.WRONG_STATE, job.plan.id, words)


def _wrong_state(job: JobHistory, record: Record, run: RunHistory) -> str:
    """Say what is wrong about a final state, or nothing."""
    if record.state is JobState.CANCELLED and job.cancel_sent is None and not _cancelled_by_slurm(job, run):
        return "CANCELLED, and nobody asked for that"
    if job.plan.requeue and record.exit_code == EXIT_TWIN:
        return "Slurm's next start of a requeueable job was turned away"
    allowed = true_states(job, run)
    if record.state in allowed:
        return ""
    return f"{record.state}, but {' or '.join(sorted(allowed)) or 'no final state'} is true"


def _rows_told(rows: Iterable[SlurmRow]) -> str:
    told = ", ".join(f"job {row.job_id} {row.state} {row.exit_code}:{row.signal} on {row.node}" for row in rows)
    return f"accounting: {told or 'nothing'}"


def true_states(job: JobHistory, run: RunHistory) -> set[JobState]:
    """Give the final states that are true by the rules in DESIGN section 4: Slurm's word about the job with the claim.

    There may be several: for a cancel and an end at the same moment, and where Slurm itself forgot what happened.
    """
    claims = claims_of(job)
    if not claims:
        return _states_without_claim(job, run)
    rows = [row for row in job.rows if row.job_id == claims[-1].job_id]
    final = _state_of(rows[-1]) if rows else None
    done = [one for one in job.executions if one.end is not None and one.job_id == claims[-1].job_id]
    if final is JobState.COMPLETED:
        return {final} if done and done[-1].exit_code == 0 else set()
    if final is not None and rows[-1].exit_code != EXIT_TWIN and not _was_forgotten(job, run):
        return {final}
    # Slurm has no final word about this very start: it forgot it, or started it once more and counts that one.
    states = {JobState.LOST}
    if final is not None:
        states.add(final)
    if job.cancel_accepted is not None:
        states.add(JobState.CANCELLED)
    if done:  # the controller may have said so before it forgot
        states.add(JobState.COMPLETED if done[-1].exit_code == 0 else JobState.FAILED)
    states |= {state for row in rows if (state := _state_of(row)) is not None and state is not JobState.COMPLETED}
    return states | _told_by_the_controller(job)


def _cancelled_by_slurm(job: JobHistory, run: RunHistory) -> bool:
    """Tell whether Slurm itself cancelled the job: agents never run as root.

    A controller that forgot a start takes its end for a cancel; the log then says "_job_complete: JobId=… cancelled by
    interactive user". One that forgot a whole job gives its id to the next one, and slurmd, which still has the first
    one, has the second one ended ("_slurm_rpc_kill_job: REQUEST_KILL_JOB JobId=… uid 0").
    """
    claims = claims_of(job)
    rows = [row for row in job.rows if not claims or row.job_id == claims[-1].job_id]
    if not rows or rows[-1].state != "CANCELLED by 0":
        return False
    return _was_forgotten(job, run) or _has_the_id_of_a_forgotten_one(job, rows[-1], run)


def _has_the_id_of_a_forgotten_one(job: JobHistory, row: SlurmRow, run: RunHistory) -> bool:
    """Tell whether a job submitted earlier had this one's id, and something made the controller forget that one."""
    if row.end is None or job.submit_sent is None:
        return False
    ended, sent = row.end, job.submit_sent
    earlier = (other for other in run.jobs if other is not job and (other.submit_sent or sent) < sent)
    had_it = any(stored.record.job_id == row.job_id for other in earlier for stored in other.records)
    return had_it and any(confuses_controller(fault.kind) and fault.begin <= ended for fault in run.faults)


def _told_by_the_controller(job: JobHistory) -> set[JobState]:
    """Give the failure that the controller told the agent, where accounting never heard of it; never a success."""
    record = job.last
    if record is None or record.end_time is None or record.slurm_state not in set(FINAL) - {JobState.COMPLETED}:
        return set()
    return {JobState(record.slurm_state)}


def _was_forgotten(job: JobHistory, run: RunHistory) -> bool:
    """Tell whether the controller may have told the job's start or end, forgotten it, and come to another end later."""
    moments = [at for one in job.executions for at in (one.begin, one.over)]
    moments += [stored.record.end_time for stored in job.records if stored.record.end_time is not None]
    return any(
        confuses_controller(fault.kind) and fault.begin - FORGETFUL <= at <= fault.end + 1
        for fault in run.faults
        for at in moments
    )


def _states_without_claim(job: JobHistory, run: RunHistory) -> set[JobState]:
    states = [_state_of(row) for row in job.rows]
    found: set[JobState] = {state for state in states if state is not None and state is not JobState.COMPLETED}
    if job.cancel_accepted is not None:
        found.add(JobState.CANCELLED)
    if any(fault.kind == "disk full" and _near(fault, job) for fault in run.faults):
        found |= {JobState.REJECTED, JobState.FAILED}
    return found


def _near(fault: FaultHistory, job: JobHistory) -> bool:
    over = job.records[-1].time if job.records else float("inf")
    return fault.begin < over + 1 and fault.end > (job.submit_sent or 0) - 1


def _state_of(row: SlurmRow) -> JobState | None:
    """Give accounting's final word; None when it has none (REQUEUED isn't one)."""
    word = row.state.split()[0]
    return JobState(word) if word in FINAL else None


# ---------------------------------------------------------------------- how the record came about


def _check_history(job: JobHistory) -> Iterator[Breach]:
    for earlier, later in pairwise(job.records):
        old, new = earlier.record, later.record
        if new.epoch < old.epoch:
            yield _history(job, f"epoch {new.epoch} wrote after epoch {old.epoch}", later.sequence)
        if not may_follow(old.state, new.state):
            yield _history(job, f"{new.state} follows {old.state}", later.sequence)
        if new.submits < old.submits or new.created_at != old.created_at:
            yield _history(job, "it began again from nothing", later.sequence)


def _history(job: JobHistory, words: str, sequence: int) -> Breach:
    return Breach(Promise.HISTORY, job.plan.id, f"{words} (message {sequence})")


# ---------------------------------------------------------------------- bytes


def _expected(job: JobHistory, start: int, stream: Stream) -> bytes | None:
    """Give what a start wrote; None when it can't be known."""
    claim = next(claim for claim in claims_of(job) if claim.start == start)
    whole = job.plan.expected(stream)
    runs = [run for run in job.executions if (run.job_id, run.node) == (claim.job_id, claim.node)]
    same = [one for one in claims_of(job) if (one.job_id, one.node) == (claim.job_id, claim.node)]
    place = same.index(claim)
    if len(runs) == len(same) and runs[place].end is not None:
        return whole
    written = job.spooled.contents.get((start, stream), b"")
    return written[: job.spooled.sizes.get((start, stream), 0)]


def _check_bytes(job: JobHistory) -> Iterator[Breach]:
    record = job.finished
    if record is None:
        return
    heads: dict[tuple[int, Stream], bytearray] = defaultdict(bytearray)
    for piece in job.pieces:
        name = f"{job.plan.id} {piece.start}.{piece.stream}"
        head = heads[piece.start, piece.stream]
        if piece.offset < len(head):
            again = len(head) - piece.offset
            yield Breach(Promise.REPEATED, name, f"offset {piece.offset} after {len(head)} bytes", again)
        elif piece.offset > len(head):
            yield Breach(Promise.MISSING, name, f"offset {piece.offset} after {len(head)}", piece.offset - len(head))
            head += bytes(piece.offset - len(head))
        head[piece.offset :] = piece.data
    for gap in job.gaps:
        name = f"{job.plan.id} {gap.start}.{gap.stream}"
        yield Breach(Promise.MISSING, name, f"{gap.length} bytes at {gap.offset}: {gap.reason}", gap.length)
    for claim in claims_of(job):
        for stream in Stream:
            yield from _compare(job, claim.start, stream, bytes(heads[claim.start, stream]), record)


def _compare(job: JobHistory, start: int, stream: Stream, got: bytes, record: Record) -> Iterator[Breach]:
    name = f"{job.plan.id} {start}.{stream}"
    expected = _expected(job, start, stream)
    if expected is None:
        return
    if len(got) < len(expected):
        words = f"{len(got)} of {len(expected)} bytes arrived"
        yield Breach(Promise.MISSING, name, words, len(expected) - len(got))
    elif len(got) > len(expected):
        words = f"{len(got)} bytes arrived, {len(expected)} were written"
        yield Breach(Promise.WRONG_BYTES, name, words, len(got) - len(expected))
    common = min(len(got), len(expected))
    wrong = (
        sum(a != b for a, b in zip(got[:common], expected[:common], strict=True))
        if got[:common] != expected[:common]
        else 0
    )
    if wrong:
        first = next(place for place in range(common) if got[place] != expected[place])
        yield Breach(Promise.WRONG_BYTES, name, f"{wrong} bytes differ, the first at {first}", wrong)
    stated = next((one.sizes for one in record.starts if one.number == start), None)
    if stated is not None and stated.get(stream, 0) != len(expected):
        words = f"the record states {stated.get(stream, 0)} bytes, {len(expected)} were written"
        yield Breach(Promise.MISSING, name, words)


def _check_bus(job: JobHistory) -> Iterator[Breach]:
    """What the bus holds of a stream has neither holes nor anything twice, whatever readers make of it."""
    ends: dict[tuple[int, Stream], int] = {}
    for chunk in job.chunks:
        name = f"{job.plan.id} {chunk.start}.{chunk.stream}"
        end = ends.get((chunk.start, chunk.stream))
        begin = chunk.offset - chunk.skipped
        if end is not None and begin < end:
            words = f"on the bus, offset {chunk.offset} follows {end} (message {chunk.sequence})"
            yield Breach(Promise.REPEATED, name, words, end - begin)
        elif end is not None and begin > end:
            words = f"on the bus, offset {chunk.offset} follows {end} (message {chunk.sequence})"
            yield Breach(Promise.MISSING, name, words, begin - end)
        ends[chunk.start, chunk.stream] = max(end or 0, chunk.offset + chunk.size)


# ---------------------------------------------------------------------- cancels and twins


def _check_cancel(job: JobHistory, run: RunHistory) -> Iterator[Breach]:
    if job.cancel_accepted is None:
        return
    for one in job.executions:
        if quiet_seconds(run, job.cancel_accepted, one.over) > CANCEL_PATIENCE:
            words = f"cancelled at {job.cancel_accepted:.2f}, ran until {one.over:.2f}"
            yield Breach(Promise.CANCEL, job.plan.id, words)


def _check_output(job: JobHistory) -> Iterator[Breach]:
    record = job.last
    if record is None or not job.plan.output or record.state is not JobState.COMPLETED:
        return
    sizes = {file.path: file.size for file in record.outputs}
    if sizes.get(job.plan.output) != OUTPUT_LINES * LINE:
        yield Breach(Promise.OUTPUT, job.plan.id, f"came back: {sizes}; {record.outputs_error}")


def quiet_seconds(run: RunHistory, begin: float, end: float) -> float:
    """Give how much of a time no fault disturbed, nor had just disturbed."""
    quiet, at = 0.0, begin
    for fault in sorted(run.faults, key=lambda one: one.begin):
        if fault.begin >= end:
            break
        quiet += max(0.0, fault.begin - at)
        at = max(at, fault.end + 10.0)
    return quiet + max(0.0, end - at)


def twins_of(job: JobHistory) -> list[SlurmRow]:
    """Give the Slurm jobs of this name but the one that has the claim (or the first, when none has)."""
    claimed = {claim.job_id for claim in claims_of(job)} or {row.job_id for row in job.rows[:1]}
    seen: set[int] = set()
    twins = []
    for row in job.rows:
        if row.job_id not in claimed and row.job_id not in seen:
            seen.add(row.job_id)
            twins.append(row)
    return twins


def _check_twins(job: JobHistory, run: RunHistory) -> Iterator[Breach]:
    """A twin does no harm. Where the controller can't have forgotten or delayed anything it has no excuse either."""
    for twin in twins_of(job):
        times = [row.submit for row in job.rows if row.submit is not None]
        first, last = min(times, default=0.0), max(times, default=0.0)
        disturbed = any(
            may_double_a_submit(fault.kind) and fault.begin - FORGETFUL <= last and fault.end + BUSY >= first
            for fault in run.faults
        )
        if not disturbed:
            yield Breach(Promise.TWIN, job.plan.id, f"Slurm job {twin.job_id}; {_rows_told(job.rows)}")
        if _state_of(twin) is JobState.COMPLETED:
            yield Breach(Promise.TWICE, job.plan.id, f"twin {twin.job_id} ended as a success")


# ---------------------------------------------------------------------- counts


def _count(run: RunHistory) -> Counts:
    counts = Counts(requests=len(run.jobs), steps=len(run.steps), step_kills=sum(step.kills for step in run.steps))
    states: dict[str, int] = defaultdict(int)
    faults: dict[str, int] = defaultdict(int)
    for job in run.jobs:
        counts.accepted += job.accepted is not None
        counts.cancels += job.cancel_accepted is not None
        counts.requeues += len(job.requeues)
        counts.jobs += len({row.job_id for row in job.rows})
        counts.starts += len(claims_of(job))
        counts.executions += len(job.executions)
        counts.turned_away += sum(row.exit_code == EXIT_TWIN for row in job.rows)
        counts.twins += len(twins_of(job))
        states[job.last.state.value if job.last else "no record"] += 1
    for fault in run.faults:
        faults[fault.kind] += 1
    counts.states = dict(sorted(states.items()))
    counts.faults = dict(sorted(faults.items()))
    return counts
