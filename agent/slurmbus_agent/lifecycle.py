"""The pure core: (record, event) -> (record, instructions).

No input or output, no clock, no randomness: the shell (:mod:`slurmbus_agent.job`) makes the record durable first and
carries out the instructions afterwards; what they find out comes back as the next event. Every instruction may be
carried out again after a restart, so none may do harm when it is repeated; but for RequeueJob, which follows from its
request alone and is lost in a restart.

The rules for the final state stand in the design's section 4: success is Slurm's COMPLETED *and* the claim of that
very job; "the controller doesn't answer" is never read as "the job is gone".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from slurmbus_agent.events import (
    Accounted,
    AskAccounting,
    Begun,
    CancelAgain,
    CancelJob,
    CancelRequested,
    Claimed,
    CollectOutputs,
    ControlWasRefused,
    Denied,
    Drain,
    Drained,
    Ended,
    Event,
    FactsFound,
    Instruction,
    Later,
    LiveSeen,
    Looked,
    LookForTwins,
    LookUp,
    Observed,
    OutputsCollected,
    Poked,
    ReadClaims,
    RequeueAnswered,
    RequeueJob,
    RequeueRequested,
    Retire,
    Stage,
    Staged,
    StagingFailed,
    StagingGoesOn,
    SubmitAgain,
    SubmitJob,
    SubmitNotSent,
    SubmitRefused,
    Submitted,
    SubmitUnknown,
    TakeClaim,
    TwinSeen,
    Unlinked,
    Watch,
)
from slurmbus_agent.runner.claims import AGENT_NODE
from slurmbus_agent.runner.protocol import EXIT_TWIN
from slurmbus_agent.scheduler.base import Observation
from slurmbus_agent.sizes import MAX_REQUEUES
from slurmbus_protocol.errors import NotRequeueable
from slurmbus_protocol.messages import CancelAsked, ControlRefused, Record, RequeueAsked, Start
from slurmbus_protocol.states import FINAL, JobState, may_follow

RETRY_SUBMIT_AFTER = 5.0
LOOKUP_AGAIN_AFTER = 3.0
LOOKUPS_BEFORE_RESUBMIT = 2  # a controller that thawed answers a lookup before it works off a waiting submit
CANCEL_AGAIN_AFTER = 15.0
UNCLAIMED_PATIENCE = (5.0, 5.0)
"""Seconds between questions to accounting about a job that the controller denies. After these it is submitted again if
nobody claimed it: should it turn up after all, the claim lets one of them run."""
CLAIMED_PATIENCE = (5.0, 15.0, 30.0, 30.0, 30.0)
"""The same for a claimed job, afterwards; then it is lost. A restarted slurmdbd answered "unknown" for 11 s."""
FIGURES_PATIENCE = (4.0, 10.0, 30.0, 120.0)
"""The same for the figures of a job whose end is known."""

LOOK_AFTER_UNLINKED = (2.0, 5.0, 10.0)
"""Seconds after a runner vanished; the controller hears of a killed job within a few seconds."""

ESTIMATE_WITHIN = 300.0
"""Seconds by which a job's expected start has to move to be written down again: a record for each guess of the
scheduler would be a flood."""
ESTIMATE_SHARE = 0.2
"""The same as a share of the time from the submit to the expected start."""

_FORGOTTEN = "the controller doesn't know the job any more; asking accounting"
_REMOVED = JobState.CANCELLED.value
"""Slurm's state of a waiting task that it keeps nothing of, since it was cancelled, while its array is still there."""
SLURM_FINAL = FINAL - {JobState.REJECTED, JobState.LOST}


Result = tuple[Record, tuple[Instruction, ...]]


def advance(record: Record, event: Event) -> Result:
    """Give the record after the event and what is to be done; the record is the same object when nothing changed."""
    if record.state.is_final and not isinstance(event, _WHEN_FINAL):
        return record, ()
    return _HANDLERS[type(event)](record, event)


def _with(record: Record, state: JobState | None = None, **changes: Any) -> Record:
    new_state = record.state if state is None else state
    if not may_follow(record.state, new_state):
        return msgspec.structs.replace(record, **changes)
    return msgspec.structs.replace(record, state=new_state, **changes)


# ---------------------------------------------------------------------- beginning and staging


def _begun(record: Record, event: Begun) -> Result:
    if event.taken_up:
        record = _with_unknown_requeues(record)
    match record.state:
        case state if state.is_final:
            return record, _afterwards(record)
        case JobState.ACCEPTED | JobState.STAGING:
            if record.cancel is not None:
                return _with(record, JobState.CANCELLED, reason=_cancel_words(record.cancel)), (Retire(),)
            return _with(record, JobState.STAGING), (Stage(),)
        case JobState.SUBMITTING:
            if record.maybe_submitted:
                return record, (ReadClaims(), LookUp())
            return _submit(record)
        case _ if record.verdict is not None:
            return record, _closing(record)
        case _:
            ended = bool(record.starts) and record.starts[-1].ended_at is not None
            left = _left(record, is_last=not record.requeue) if ended else ()
            return record, (ReadClaims(), Watch(urgent=ended), *left, *_repeat_cancel(record))


def _staged(record: Record, event: Staged) -> Result:
    if record.state is not JobState.STAGING:
        return record, ()
    record = _with(record, spool=event.spool, work_dir=event.work_dir, environment=event.environment, reason=None)
    if record.cancel is not None:
        return _with(record, JobState.CANCELLED, reason=_cancel_words(record.cancel)), (Retire(),)
    return _submit(record)


def _staging_goes_on(record: Record, event: StagingGoesOn) -> Result:
    if record.state is not JobState.STAGING:
        return record, ()
    return _with(record, reason=event.doing), ()


def _staging_failed(record: Record, event: StagingFailed) -> Result:
    if record.state is not JobState.STAGING:
        return record, ()
    rejected = _with(record, JobState.REJECTED, error_code=event.code, reason=event.message, hint=event.hint or None)
    return rejected, (Retire(),)


# ---------------------------------------------------------------------- submitting


def _submit(record: Record) -> Result:
    return (
        _with(record, JobState.SUBMITTING, submits=record.submits + 1, maybe_submitted=True, lookups=0, job_id=None),
        (SubmitJob(),),
    )


def _submitted(record: Record, event: Submitted) -> Result:
    if record.state is not JobState.SUBMITTING:  # a runner was faster than Slurm's answer: its claim counts
        return record, (Watch(),)
    record = _with(record, JobState.PENDING, job_id=event.job_id, reason=None, lookups=0)
    return record, (Watch(), *_repeat_cancel(record))


def _submit_refused(record: Record, event: SubmitRefused) -> Result:
    if record.state is not JobState.SUBMITTING:
        return record, ()
    rejected = _with(
        record,
        JobState.REJECTED,
        maybe_submitted=False,
        error_code="refused",
        reason=event.message,
        hint=event.hint or None,
    )
    return rejected, (Retire(),)


def _submit_not_sent(record: Record, event: SubmitNotSent) -> Result:
    if record.state is not JobState.SUBMITTING:
        return record, ()
    # Only the first submit leaves nothing behind: an earlier one may still turn up.
    nothing_sent = record.submits <= 1
    record = _with(record, maybe_submitted=not nothing_sent, reason=event.message)
    if record.cancel is not None and nothing_sent:
        return _with(record, JobState.CANCELLED, reason=_cancel_words(record.cancel)), (Retire(),)
    return record, (Later(delay=RETRY_SUBMIT_AFTER, event=SubmitAgain()),)


def _submit_unknown(record: Record, event: SubmitUnknown) -> Result:
    if record.state is not JobState.SUBMITTING:
        return record, ()
    return _with(record, reason=event.message), (Later(delay=LOOKUP_AGAIN_AFTER, event=SubmitAgain()),)


def _submit_again(record: Record, _: SubmitAgain) -> Result:
    if record.state is not JobState.SUBMITTING or record.job_id is not None:
        return record, ()
    if record.maybe_submitted:
        return record, (ReadClaims(), LookUp())
    if record.cancel is not None:
        return _with(record, JobState.CANCELLED, reason=_cancel_words(record.cancel)), (Retire(),)
    # The count stays: the submit that is repeated was never sent.
    return _submit(_with(record, submits=record.submits - 1))


def _looked(record: Record, event: Looked) -> Result:
    if record.job_id is not None or record.state is not JobState.SUBMITTING:
        return record, ()
    if event.observation is not None:
        record, instructions = _submitted(record, Submitted(job_id=event.observation.job_id))
        record, more = _observed(record, Observed(observation=event.observation))
        return record, (*instructions, *more)
    if event.row is not None and event.row.final:  # it ended, and the controller has forgotten it since
        record = _with(record, JobState.PENDING, job_id=event.row.job_id, lookups=0)
        return record, (Watch(),)
    record = _with(record, lookups=record.lookups + 1)
    if record.lookups < LOOKUPS_BEFORE_RESUBMIT:
        return record, (Later(delay=LOOKUP_AGAIN_AFTER, event=SubmitAgain()),)
    if record.cancel is not None:
        return record, (TakeClaim(start=0),)
    return _submit(record)


def _twin_seen(record: Record, event: TwinSeen) -> Result:
    # Until one of them has the claim nobody knows which one is the twin.
    if not record.starts or event.job_id == record.job_id or event.job_id in record.twins:
        return record, ()
    record = _with(record, twins=(*record.twins, event.job_id))
    return record, () if event.over else (CancelJob(job_id=event.job_id),)


# ---------------------------------------------------------------------- following


def _observed(record: Record, event: Observed) -> Result:
    seen = event.observation
    if record.verdict is not None or record.job_id is None or seen.job_id != record.job_id:
        return record, ()
    shown: dict[str, Any] = {
        "slurm_state": " ".join((seen.state, *seen.flags)) if seen.flags else seen.state,
        "reason": seen.reason or None,
        "partition": seen.partition or record.partition,
        "nodes": seen.nodes or record.nodes,
        "node_list": seen.node_list or record.node_list,
        "alloc_cpus": seen.alloc_cpus or record.alloc_cpus,
        "submit_time": seen.submit_time or record.submit_time,
        "start_time": seen.start_time or record.start_time,
        "estimated_start": _estimate(record, seen),
        "lookups": 0,
    }
    if seen.task_job_id is not None:
        shown["task_job_id"] = seen.task_job_id
    if seen.state == "PENDING":
        return _with(record, JobState.PENDING, **shown), ()
    if "COMPLETING" in seen.flags:
        return _with(record, JobState.COMPLETING, **shown), (Watch(urgent=True),)
    if seen.state in SLURM_FINAL:
        record = _with(record, end_time=seen.end_time, **shown)
        return _judge(record, JobState(seen.state), seen.exit_code, seen.signal)
    if not record.starts:
        return _with(record, JobState.RUNNING, **shown), (ReadClaims(),)
    if record.starts[-1].ended_at is not None:
        # The runner has gone and the controller will notice soon, or it runs again and its next start isn't known yet.
        again: tuple[Instruction, ...] = (ReadClaims(),) if record.requeue else ()
        return _with(record, JobState.COMPLETING, **shown), (*again, Watch(urgent=True))
    return _with(record, JobState.RUNNING, **shown), ()


def _estimate(record: Record, seen: Observation) -> float | None:
    """Give when a pending job may start. The scheduler guesses anew all the time; what changes little is no news."""
    old, new = record.estimated_start, seen.start_estimate
    if old is None or new is None:
        return new
    waited = old - (seen.submit_time or old)
    return old if abs(new - old) < max(ESTIMATE_WITHIN, ESTIMATE_SHARE * waited) else new


def _judge(record: Record, verdict: JobState, exit_code: int | None, signal: int | None) -> Result:
    """Keep Slurm's final word; the job is final when everything was relayed."""
    record = _with(record, JobState.COMPLETING, verdict=verdict, exit_code=exit_code, signal=signal)
    return _finish(record, _closing(record))


def _closing(record: Record) -> tuple[Instruction, ...]:
    """Say what is left to do before the job can be final: a claim, every start's bytes, the outputs."""
    if not record.starts:
        return (TakeClaim(start=0),)
    # A job that is requeueable may start again at any time; one whose end nobody reported may still run somewhere.
    unseen = all(start.sizes is not None for start in record.starts) and record.starts[-1].ended_at is None
    open_ended = not _is_closed(record) and (record.requeue or unseen)
    seal = (TakeClaim(start=record.starts[-1].number + 1),) if open_ended else ()
    return (*seal, *_left(record, is_last=True))


def _left(record: Record, *, is_last: bool) -> tuple[Instruction, ...]:
    """Say what is left to fetch of what ran: each start's bytes, and the outputs unless another may write them."""
    drains = tuple(Drain(start=start.number) for start in record.starts if start.sizes is None)
    return (*drains, CollectOutputs()) if is_last and record.outputs_pending else drains


def _is_closed(record: Record) -> bool:
    """Tell whether no payload of this job runs or can start any more."""
    last = record.starts[-1]
    return record.sealed or last.node == AGENT_NODE or (not record.requeue and last.ended_at is not None)


def _poked(record: Record, _: Poked) -> Result:
    if record.job_id is None or record.verdict is not None:
        return record, ()
    return record, (Watch(urgent=True),)


def _unlinked(record: Record, event: Unlinked) -> Result:
    start = _start(record, event.start)
    if start is None or start.ended_at is not None or record.job_id is None or record.verdict is not None:
        return record, ()
    looks = tuple(Later(delay=delay, event=Poked()) for delay in LOOK_AFTER_UNLINKED)
    return record, (Watch(urgent=True), *looks)


def _denied(record: Record, event: Denied) -> Result:
    if record.verdict is not None or record.job_id is None:
        return record, ()
    if event.removed and not record.starts and record.cancel is not None:
        return record, (TakeClaim(start=0),)
    if event.removed and not record.starts:  # somebody cancelled it in Slurm, or it failed long ago without a claim
        record = _with(record, slurm_state=_REMOVED)
    denied = _with(record, lookups=max(1, record.lookups), reason=_FORGOTTEN)
    return denied, (ReadClaims(), AskAccounting(again=UNCLAIMED_PATIENCE))


def _accounted(record: Record, event: Accounted) -> Result:
    row = event.row
    if record.state.is_final:
        if row is None or record.accounting is not None:
            return record, (Retire(),)
        return _with(record, accounting=row.accounting), (Retire(),)
    # Accounting counts only while the controller's last word is that it doesn't know the job.
    if record.verdict is not None or record.job_id is None or not record.lookups:
        return record, ()
    if row is not None and row.final and row.accounting.state in SLURM_FINAL:
        record = _with(
            record,
            accounting=row.accounting,
            start_time=row.start_time or record.start_time,
            end_time=row.end_time,
            node_list=row.node_list or record.node_list,
            slurm_state=row.accounting.state,
        )
        return _judge(record, JobState(row.accounting.state), row.accounting.exit_code, row.accounting.signal)
    return _unaccounted(record)


def _unaccounted(record: Record) -> Result:
    """Neither the controller nor accounting has the job's end."""
    if not record.starts:
        unwanted = record.cancel is not None or record.slurm_state == _REMOVED
        return (record, (TakeClaim(start=0),)) if unwanted else _submit(record)
    if record.lookups == 1:
        return _with(record, lookups=2), (AskAccounting(again=CLAIMED_PATIENCE),)
    lost = _with(
        record,
        verdict=JobState.LOST,
        error_code="lost",
        reason=f"Slurm's controller denies the job and accounting has no final state; {_last_words(record)}",
        hint="look at the spool, and ask the site's staff what became of the job",
    )
    return _finish(lost, _closing(lost))


def _last_words(record: Record) -> str:
    last = record.starts[-1]
    if last.ended_at is None:
        return "its runner hasn't reported an end"
    how = f"signal {last.signal}" if last.signal else f"exit code {last.exit_code}"
    return f"its runner reported the end of the payload with {how}"


# ---------------------------------------------------------------------- claims, ends and bytes


def _claimed(record: Record, event: Claimed) -> Result:
    if record.submits == 0:  # nothing was submitted yet, so nobody can have claimed anything
        return record, ()
    seal = next((start for start in event.starts if start.node == AGENT_NODE), None)
    if seal is not None and seal.number == 0:
        return _sealed(record, seal, event.batch_output) if not record.starts else (record, ())
    record = _with_own_ids(record, event.starts)
    known = {start.number for start in record.starts}
    fresh = tuple(start for start in event.starts if start.number not in known and start.node != AGENT_NODE)
    sealed = record.sealed or seal is not None
    if not fresh:
        return _finish(_with(record, sealed=sealed), ()) if sealed != record.sealed else (record, ())
    record, twin = _adopt(_with(record, sealed=sealed), fresh)
    looks: tuple[Instruction, ...] = (LookForTwins(),) if record.submits > 1 else ()
    closing = _closing(record) if record.verdict is not None else (Watch(),)
    return _finish(record, (*twin, *looks, *_repeat_cancel(record), *closing))


def _with_own_ids(record: Record, claimed: tuple[Start, ...]) -> Record:
    """Learn from a runner that says hello what its claim in the spool doesn't: the own id of an array's task."""
    own = {start.nonce: start.task_job_id for start in claimed if start.task_job_id is not None}
    if not any(start.task_job_id is None and start.nonce in own for start in record.starts):
        return record
    starts = tuple(
        msgspec.structs.replace(start, task_job_id=start.task_job_id or own.get(start.nonce)) for start in record.starts
    )
    return _with(record, starts=starts, task_job_id=starts[-1].task_job_id or record.task_job_id)


def _adopt(record: Record, fresh: tuple[Start, ...]) -> Result:
    """Make the latest claim's Slurm job the record's; another one that was taken for it is a twin."""
    starts = tuple(sorted((*record.starts, *fresh), key=lambda start: start.number))
    latest, before = starts[-1], record.job_id
    other = before is not None and before != latest.job_id
    stop_twin: tuple[Instruction, ...] = (CancelJob(job_id=before),) if other and before is not None else ()
    twins = (*record.twins, before) if other and before is not None else record.twins
    # What was said of an earlier start, or of a twin, says nothing about this one.
    void = record.verdict is not None and (other or (record.requeue and latest in fresh))
    again = len(starts) > 1
    if void:  # its outputs are wanted as well, not those of the start before
        wanted = record.outputs_pending or bool(record.outputs) or record.outputs_error is not None
        record = _with(record, verdict=None, outputs_pending=wanted, outputs=(), outputs_error=None)
    record = _with(
        record,
        JobState.RUNNING if record.verdict is None else None,
        starts=starts,
        twins=twins,
        job_id=latest.job_id,
        node_list=latest.node if other or again else record.node_list or latest.node,
        start_time=latest.started_at if other or again else record.start_time or latest.started_at,
        estimated_start=None,
        reason=None,
        lookups=0,
        task_job_id=latest.task_job_id or (None if other else record.task_job_id),
    )
    return record, stop_twin


def _sealed(record: Record, seal: Start, batch_output: str) -> Result:
    """The agent holds the first claim: no payload ran and none can start any more."""
    record = _with(record, starts=(seal,))
    if record.verdict is None:
        words = _cancel_words(record.cancel) if record.cancel else "the job never started"
        record = _with(record, verdict=JobState.CANCELLED, reason=words)
    if record.verdict is JobState.COMPLETED:
        record = _with(record, verdict=JobState.FAILED)
    if record.verdict is JobState.FAILED:
        words = batch_output or "the batch script ended before the payload could start"
        record = _with(record, reason=words, error_code="not-started")
    starts = tuple(msgspec.structs.replace(start, sizes={}) for start in record.starts)
    return _finish(_with(record, JobState.COMPLETING, starts=starts, outputs_pending=False), ())


def _ended(record: Record, event: Ended) -> Result:
    start = _start(record, event.start)
    if start is None or start.ended_at is not None:
        return record, ()
    start = msgspec.structs.replace(
        start,
        ended_at=event.ended_at,
        exit_code=event.exit_code,
        signal=event.signal,
        error=event.error,
        error_code=event.error_code,
        usage=event.usage,
        live=event.live or start.live,
        facts=event.facts or start.facts,
    )
    record = _replace_start(record, start)
    instructions: list[Instruction] = [Drain(start=event.start)]
    if start.number == record.starts[-1].number:
        record = _with(record, JobState.COMPLETING)
        if record.outputs_pending and not record.requeue:  # another start may still write others
            instructions.append(CollectOutputs())
        if record.verdict is None:
            instructions.append(Watch(urgent=True))
    return record, tuple(instructions)


def _live_seen(record: Record, event: LiveSeen) -> Result:
    start = _start(record, event.start)
    if start is None or start.ended_at is not None:
        return record, ()
    if start.live is not None and start.live.at >= event.live.at:  # told again on another connection
        return record, ()
    return _replace_start(record, msgspec.structs.replace(start, live=event.live)), ()


def _facts_found(record: Record, event: FactsFound) -> Result:
    start = _start(record, event.start)
    if start is None or start.ended_at is not None or start.facts == event.facts:
        return record, ()
    return _replace_start(record, msgspec.structs.replace(start, facts=event.facts)), ()


def _drained(record: Record, event: Drained) -> Result:
    start = _start(record, event.start)
    if start is None or start.sizes is not None:
        return record, ()
    record = _replace_start(record, msgspec.structs.replace(start, sizes=event.sizes))
    return _finish(record, _closing(record) if record.verdict is not None else ())


def _outputs_collected(record: Record, event: OutputsCollected) -> Result:
    if not record.outputs_pending:
        return record, ()
    record = _with(record, outputs=event.outputs, outputs_error=event.error, outputs_pending=False)
    return _finish(record, ())


def _finish(record: Record, instructions: tuple[Instruction, ...]) -> Result:
    """Make Slurm's final word the job's state when every byte was relayed and the outputs are on the bus."""
    complete = (
        record.verdict is not None
        and record.starts
        and not record.outputs_pending
        and all(start.sizes is not None for start in record.starts)
        and _is_closed(record)
    )
    if not complete or record.verdict is None:
        return record, instructions
    last = record.starts[-1]
    changes: dict[str, Any] = {}
    if last.node != AGENT_NODE and last.ended_at is not None:
        changes = {"exit_code": last.exit_code, "signal": last.signal}
        if last.error is not None and record.verdict is JobState.FAILED:
            changes |= {"reason": last.error, "error_code": last.error_code}
    if last.node != AGENT_NODE and record.exit_code == EXIT_TWIN and last.exit_code != EXIT_TWIN:
        changes |= {
            "exit_code": EXIT_TWIN,
            "error_code": "started-twice",
            "reason": f"Slurm started the job a second time, and that start ended at the claim; {_last_words(record)}",
        }
    record = _with(record, record.verdict, **changes)
    return record, _afterwards(record)


def _afterwards(record: Record) -> tuple[Instruction, ...]:
    """Say what is left to do for a job in its final state."""
    if record.accounting is None and record.job_id is not None and record.state in SLURM_FINAL:
        return (AskAccounting(figures=True, again=FIGURES_PATIENCE),)
    return (Retire(),)


# ---------------------------------------------------------------------- cancelling


def _cancel_requested(record: Record, event: CancelRequested) -> Result:
    if record.cancel is not None:
        return record, ()
    record = _with(record, cancel=event.cancel)
    if record.state is JobState.STAGING:  # it may take minutes, and nothing was submitted yet
        return _with(record, JobState.CANCELLED, reason=_cancel_words(record.cancel)), (Retire(),)
    # Submitting sees the cancel when it comes back: it isn't interrupted half-way.
    return record, _repeat_cancel(record)


def _control_was_refused(record: Record, event: ControlWasRefused) -> Result:
    return _with(record, refused=event.refused), ()


def _cancel_again(record: Record, _: CancelAgain) -> Result:
    if record.verdict is not None or record.job_id is None:
        return record, ()
    return record, (*_repeat_cancel(record), Watch())


def _repeat_cancel(record: Record) -> tuple[Instruction, ...]:
    """A cancel that was asked for is carried out again whenever the job shows signs of life."""
    if record.cancel is None or record.job_id is None or record.verdict is not None:
        return ()
    return (CancelJob(job_id=record.job_id), Later(delay=CANCEL_AGAIN_AFTER, event=CancelAgain()))


# ---------------------------------------------------------------------- requeueing


def _requeue_requested(record: Record, event: RequeueRequested) -> Result:
    asked = event.requeue
    if any(one.id == asked.id for one in record.requeues):  # it comes again: carried out once, or refused for good
        return record, ()
    message, hint = _why_no_requeue(record)
    job_id = record.job_id
    if not message and job_id is not None:
        return _with(record, requeues=(*record.requeues, asked)), (RequeueJob(id=asked.id, job_id=job_id),)
    if len(record.requeues) < MAX_REQUEUES:
        noted = msgspec.structs.replace(asked, outcome="refused", message=message)
        record = _with(record, requeues=(*record.requeues, noted))
    return _with(record, refused=refusal(asked, NotRequeueable.code, message, hint)), ()


def _why_no_requeue(record: Record) -> tuple[str, str]:
    """Say why the job can't be requeued, and what to do; nothing when it can."""
    if record.state.is_final:
        return f"the job has ended: {record.state}", "submit it again"
    if not record.requeue:
        return "the job wasn't submitted as one that may start again", "submit it with requeue=True"
    if record.cancel is not None:
        return f"{record.cancel.submitter} asked for the job's end", "submit it again when it has ended"
    if record.state is not JobState.RUNNING or record.job_id is None or record.verdict is not None:
        return f"the job isn't running: it is {record.state}", "wait until it runs"
    if any(not one.outcome for one in record.requeues):
        return "Slurm is being told to requeue the job already", "look at the job's state"
    if len(record.requeues) >= MAX_REQUEUES:
        return f"{len(record.requeues)} requeues of the job were asked for already", "cancel it, and submit it again"
    return "", ""


def refusal(asked: RequeueAsked, code: str, message: str, hint: str) -> ControlRefused:
    """Say of a requeue that it wasn't carried out, and why."""
    return ControlRefused(id=asked.id, at=asked.at, submitter=asked.submitter, code=code, message=message, hint=hint)


def _requeue_answered(record: Record, event: RequeueAnswered) -> Result:
    asked = next((one for one in record.requeues if one.id == event.id), None)
    if asked is None:
        return record, ()
    told = msgspec.structs.replace(asked, outcome=event.outcome, message=event.message)
    record = _with(record, requeues=tuple(told if one is asked else one for one in record.requeues))
    if event.outcome == "refused":
        record = _with(record, refused=refusal(asked, event.code, event.message, event.hint))
    return record, (Watch(urgent=True),) if record.job_id is not None and record.verdict is None else ()


def _with_unknown_requeues(record: Record) -> Record:
    """Say of a requeue that an agent noted and whose answer it didn't live to see that its outcome is unknown."""
    if all(one.outcome for one in record.requeues):
        return record
    unknown = "the agent began anew while Slurm was being told"
    return _with(
        record,
        requeues=tuple(
            one if one.outcome else msgspec.structs.replace(one, outcome="unknown", message=unknown)
            for one in record.requeues
        ),
    )


def _cancel_words(cancel: CancelAsked | None) -> str:
    if cancel is None:
        return "cancelled"
    return f"cancelled by {cancel.submitter}" + (f": {cancel.reason}" if cancel.reason else "")


def _start(record: Record, number: int) -> Start | None:
    return next((start for start in record.starts if start.number == number), None)


def _replace_start(record: Record, start: Start) -> Record:
    return _with(record, starts=tuple(start if old.number == start.number else old for old in record.starts))


_WHEN_FINAL = (Accounted, Begun, RequeueRequested, RequeueAnswered)
"""What may still happen to a job in its final state."""

_HANDLERS: dict[type[Event], Callable[[Record, Any], Result]] = {
    Begun: _begun,
    Staged: _staged,
    StagingFailed: _staging_failed,
    StagingGoesOn: _staging_goes_on,
    Submitted: _submitted,
    SubmitRefused: _submit_refused,
    SubmitNotSent: _submit_not_sent,
    SubmitUnknown: _submit_unknown,
    SubmitAgain: _submit_again,
    Looked: _looked,
    TwinSeen: _twin_seen,
    Observed: _observed,
    Poked: _poked,
    Unlinked: _unlinked,
    Denied: _denied,
    Accounted: _accounted,
    Claimed: _claimed,
    Ended: _ended,
    LiveSeen: _live_seen,
    FactsFound: _facts_found,
    Drained: _drained,
    OutputsCollected: _outputs_collected,
    CancelRequested: _cancel_requested,
    ControlWasRefused: _control_was_refused,
    CancelAgain: _cancel_again,
    RequeueRequested: _requeue_requested,
    RequeueAnswered: _requeue_answered,
}
