"""The pure core: what follows from what, for every state and every order of events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurmbus_agent import events, lifecycle
from slurmbus_agent.events import Event, Instruction
from slurmbus_agent.runner.claims import AGENT_NODE
from slurmbus_agent.scheduler.base import AccountingRow, Observation
from slurmbus_agent.sizes import MAX_REQUEUES
from slurmbus_protocol.messages import Accounting, CancelAsked, Record, RequeueAsked, Start
from slurmbus_protocol.states import FINAL, TRANSITIONS, JobState, may_follow

KEY = "01JD0000000000000000000000"
OTHER = "01JD0000000000000000000001"
CANCEL = CancelAsked(id=KEY, at=1.0, submitter="me@host")
AGAIN = RequeueAsked(id=KEY, at=1.0, submitter="me@host")
REQUEUE = events.RequeueRequested(requeue=AGAIN)
DONE = events.RequeueAnswered(id=KEY, outcome="done")


def record(state: JobState = JobState.ACCEPTED, **fields: Any) -> Record:
    base: dict[str, Any] = {
        "key": KEY,
        "site": "a",
        "epoch": 1,
        "name": "job",
        "submitter": "me",
        "created_at": 1.0,
        "updated_at": 1.0,
    }
    return Record(state=state, **{**base, **fields})


def seen(state: str, job_id: int = 7, *flags: str, exit_code: int | None = None) -> events.Observed:
    return events.Observed(
        observation=Observation(job_id=job_id, name=f"job.{KEY}", state=state, flags=flags, exit_code=exit_code)
    )


def start(number: int = 0, job_id: int = 7, node: str = "c1") -> Start:
    return Start(number=number, job_id=job_id, node=node, nonce=f"n{number}", started_at=2.0)


def ended(number: int = 0, exit_code: int = 0) -> events.Ended:
    return events.Ended(start=number, exit_code=exit_code, signal=None, error=None, usage=None, ended_at=3.0)


def row(state: str, *, final: bool = True) -> AccountingRow:
    accounting = Accounting(state=state, exit_code=0, signal=0, elapsed=1.0, cpu_seconds=1.0, alloc_cpus=1)
    return AccountingRow(job_id=7, name=f"job.{KEY}", final=final, accounting=accounting)


def play(first: Record, *happened: Event) -> tuple[Record, list[Instruction]]:
    told: list[Instruction] = []
    current = first
    for event in happened:
        current, instructions = lifecycle.advance(current, event)
        told.extend(instructions)
    return current, told


STAGED = events.Staged(spool="/s", work_dir="/s/work")
CLAIMED = events.Claimed(starts=(start(),))
SEALED = events.Claimed(starts=(start(), start(1, node=AGENT_NODE)))
DRAINED = events.Drained(start=0, sizes={"stdout": 3})


def test_a_job_that_goes_well() -> None:
    current, told = play(
        record(), events.Begun(), STAGED, events.Submitted(job_id=7), CLAIMED, ended(), seen("COMPLETED", exit_code=0)
    )
    assert current.state is JobState.COMPLETING
    assert current.verdict is JobState.COMPLETED
    assert sum(isinstance(item, events.SubmitJob) for item in told) == 1
    current, told = play(current, DRAINED)
    assert current.state is JobState.COMPLETED
    assert (current.exit_code, current.starts[0].sizes) == (0, {"stdout": 3})
    assert told == [events.AskAccounting(figures=True, again=lifecycle.FIGURES_PATIENCE)]


def test_the_intent_is_in_the_record_before_the_call() -> None:
    current, told = play(record(), events.Begun(), STAGED)
    assert (current.state, current.submits, current.maybe_submitted) == (JobState.SUBMITTING, 1, True)
    assert told == [events.Stage(), events.SubmitJob()]


def test_success_needs_the_claim_of_that_very_job() -> None:
    pending = record(JobState.PENDING, job_id=7, submits=1)
    current, told = play(pending, seen("COMPLETED", exit_code=0))
    assert not current.state.is_final
    assert events.TakeClaim(start=0) in told
    sealed = events.Claimed(starts=(start(node=AGENT_NODE),), batch_output="no python3 on c1")
    current, _ = play(current, sealed)
    assert (current.state, current.reason) == (JobState.FAILED, "no python3 on c1")


def test_another_jobs_end_says_nothing() -> None:
    running = record(JobState.RUNNING, job_id=7, starts=(start(),))
    current, told = play(running, seen("COMPLETED", 8, exit_code=0))
    assert current is running
    assert told == []


def test_an_unknown_submit_is_looked_up_and_never_taken_for_refused() -> None:
    submitting = record(JobState.SUBMITTING, submits=1, maybe_submitted=True)
    current, told = play(submitting, events.SubmitUnknown(message="no answer"), events.SubmitAgain())
    assert events.LookUp() in told
    assert events.SubmitJob() not in told
    current, told = play(current, events.Looked(observation=seen("RUNNING").observation))
    assert (current.job_id, current.state) == (7, JobState.RUNNING)
    assert events.SubmitJob() not in told


def test_a_job_that_slurm_doesnt_know_is_submitted_again_only_after_asking_twice() -> None:
    submitting = record(JobState.SUBMITTING, submits=1, maybe_submitted=True)
    current, told = play(submitting, events.Looked(observation=None))
    assert events.SubmitJob() not in told
    current, told = play(current, events.Looked(observation=None))
    assert told == [events.SubmitJob()]
    assert current.submits == 2


def test_a_refusal_ends_the_job_with_slurms_own_words() -> None:
    refused = events.SubmitRefused(message="Invalid partition name specified", hint="there are main, gpu")
    current, _ = play(record(), events.Begun(), STAGED, refused)
    assert (current.state, current.reason) == (JobState.REJECTED, "Invalid partition name specified")


def test_a_submit_that_wasnt_sent_is_tried_again_without_a_lookup() -> None:
    current, told = play(record(), events.Begun(), STAGED, events.SubmitNotSent(message="controller down"))
    assert current.maybe_submitted is False
    current, told = play(current, events.SubmitAgain())
    assert told == [events.SubmitJob()]
    assert current.submits == 1


def test_the_controller_forgot_a_claimed_job() -> None:
    running = record(JobState.RUNNING, job_id=7, starts=(start(),))
    current, told = play(running, events.Denied())
    assert events.AskAccounting(again=lifecycle.UNCLAIMED_PATIENCE) in told
    assert not current.state.is_final
    current, told = play(current, events.Accounted(row=row("COMPLETED")))
    assert current.verdict is JobState.COMPLETED
    assert events.Drain(start=0) in told


def test_a_claimed_job_that_nobody_knows_is_lost_after_some_minutes_and_never_a_success() -> None:
    current = record(JobState.RUNNING, job_id=7, submits=1, starts=(start(),))
    current, told = play(current, events.Denied(), events.Accounted(row=None))
    assert told[-1] == events.AskAccounting(again=lifecycle.CLAIMED_PATIENCE)
    assert current.verdict is None
    known, _ = play(current, seen("RUNNING"), events.Accounted(row=None))
    assert known.verdict is None, "the controller knows it again"
    current, _ = play(current, events.Denied(), events.Accounted(row=row("RUNNING", final=False)))
    current, told = play(current, DRAINED)
    assert told == [events.TakeClaim(start=1)], "its payload may still run somewhere"
    current, _ = play(current, SEALED)
    assert current.state is JobState.LOST


def test_a_job_that_nobody_claimed_and_the_controller_forgot_is_submitted_again() -> None:
    current = record(JobState.RUNNING, job_id=7, submits=1)
    current, told = play(current, events.Denied())
    assert events.SubmitJob() not in told
    current, told = play(current, events.Accounted(row=None))
    assert events.SubmitJob() in told
    assert (current.state, current.job_id) == (JobState.SUBMITTING, None)


def test_a_lookup_believes_accounting_when_the_job_ended_and_was_forgotten() -> None:
    submitting = record(JobState.SUBMITTING, submits=1, maybe_submitted=True)
    current, told = play(submitting, events.Looked(observation=None, row=row("CANCELLED")))
    assert current.job_id == 7
    assert events.SubmitJob() not in told
    current, told = play(current, events.Denied(), events.Accounted(row=row("CANCELLED")))
    assert events.TakeClaim(start=0) in told


def test_a_twin_is_ended_and_reported_once_somebody_has_the_claim() -> None:
    pending = record(JobState.PENDING, job_id=7, submits=2)
    twin = events.TwinSeen(job_id=8, over=False)
    current, told = play(pending, twin)
    assert told == [], "nobody knows yet which one is the twin"
    current, told = play(current, CLAIMED)
    assert events.LookForTwins() in told
    current, told = play(current, twin, twin)
    assert told == [events.CancelJob(job_id=8)]
    assert current.twins == (8,)


def test_a_verdict_on_a_twin_is_none_on_the_job() -> None:
    pending = record(JobState.PENDING, job_id=7, submits=2, cancel=CANCEL)
    current, _ = play(pending, seen("CANCELLED"))
    assert current.verdict is JobState.CANCELLED
    current, told = play(current, events.Claimed(starts=(start(job_id=8),)))
    assert (current.verdict, current.state, current.job_id) == (None, JobState.RUNNING, 8)
    assert events.CancelJob(job_id=8) in told


def test_a_requeueable_job_is_sealed_before_it_is_final() -> None:
    running = record(JobState.RUNNING, job_id=7, submits=1, requeue=True, starts=(start(),))
    current, told = play(running, ended(), DRAINED, seen("COMPLETED", exit_code=0))
    assert events.TakeClaim(start=1) in told
    assert not current.state.is_final
    again, _ = play(current, events.Claimed(starts=(start(), start(1))))
    assert (again.verdict, again.state) == (None, JobState.RUNNING), "it had started again"
    current, _ = play(current, SEALED)
    assert current.state is JobState.COMPLETED
    assert current.sealed


def test_outputs_of_a_requeueable_job_are_those_of_the_last_start() -> None:
    running = record(JobState.RUNNING, job_id=7, submits=1, requeue=True, starts=(start(),), outputs_pending=True)
    current, told = play(running, ended(), DRAINED)
    assert events.CollectOutputs() not in told
    current, told = play(current, seen("COMPLETED", exit_code=0))
    assert events.CollectOutputs() in told
    current, _ = play(current, events.OutputsCollected(outputs=()), events.Claimed(starts=(start(), start(1))))
    current, told = play(current, ended(1), events.Drained(start=1, sizes={}), seen("COMPLETED", exit_code=0))
    assert not current.outputs_pending or events.CollectOutputs() in told


def test_a_job_that_slurm_started_twice_is_no_success() -> None:
    running = record(JobState.RUNNING, job_id=7, submits=1, starts=(start(),))
    current, _ = play(running, seen("FAILED", exit_code=113), ended(), DRAINED)
    assert (current.state, current.error_code, current.exit_code) == (JobState.FAILED, "started-twice", 113)


def test_a_runner_that_vanished_makes_the_agent_look_at_once_and_again() -> None:
    running = record(JobState.RUNNING, job_id=7, submits=1, starts=(start(),))
    _, told = play(running, events.Unlinked(start=0))
    assert told[0] == events.Watch(urgent=True)
    assert len(told) == 1 + len(lifecycle.LOOK_AFTER_UNLINKED)
    _, told = play(running, ended(), events.Unlinked(start=0))
    assert not any(isinstance(item, events.Later) for item in told)


def test_a_requeue_goes_back_to_pending_and_into_the_next_start() -> None:
    running = record(JobState.RUNNING, job_id=7, submits=1, requeue=True, starts=(start(),))
    current, _ = play(running, seen("PENDING", 7, "COMPLETING"))
    assert current.state is JobState.PENDING
    current, _ = play(current, events.Claimed(starts=(start(), start(1))))
    assert current.state is JobState.RUNNING
    assert [item.number for item in current.starts] == [0, 1]


def test_a_superseded_starts_end_doesnt_end_the_job() -> None:
    running = record(JobState.RUNNING, job_id=7, submits=1, requeue=True, starts=(start(), start(1)))
    current, told = play(running, ended(0, exit_code=1))
    assert current.state is JobState.RUNNING
    assert told == [events.Drain(start=0)]


def test_a_claim_by_another_slurm_job_is_the_truth_and_the_other_is_cancelled() -> None:
    pending = record(JobState.PENDING, job_id=7, submits=1)
    current, told = play(pending, events.Claimed(starts=(start(job_id=9),)))
    assert current.job_id == 9
    assert events.CancelJob(job_id=7) in told


@pytest.mark.parametrize("state", [JobState.ACCEPTED, JobState.STAGING])
def test_a_cancel_before_the_submit_means_no_submit(state: JobState) -> None:
    current, told = play(record(state), events.CancelRequested(cancel=CANCEL), events.Begun(), STAGED)
    assert current.state is JobState.CANCELLED
    assert events.SubmitJob() not in told


def test_a_cancel_is_repeated_until_the_state_is_final() -> None:
    running = record(JobState.RUNNING, job_id=7, starts=(start(),))
    current, told = play(running, events.CancelRequested(cancel=CANCEL))
    assert events.CancelJob(job_id=7) in told
    for _ in range(3):
        current, told = play(current, events.CancelAgain())
        assert events.CancelJob(job_id=7) in told
    current, told = play(current, seen("CANCELLED"), events.CancelAgain())
    assert events.CancelJob(job_id=7) not in told


def test_a_cancel_that_overtakes_the_submit_seals_the_job() -> None:
    submitting = record(JobState.SUBMITTING, submits=1, maybe_submitted=True)
    current, told = play(
        submitting,
        events.CancelRequested(cancel=CANCEL),
        events.Looked(observation=None),
        events.Looked(observation=None),
    )
    assert told[-1] == events.TakeClaim(start=0)
    assert events.SubmitJob() not in told
    current, _ = play(current, events.Claimed(starts=(start(node=AGENT_NODE),)))
    assert current.state is JobState.CANCELLED


def running(**fields: Any) -> Record:
    return record(
        **{"state": JobState.RUNNING, "job_id": 7, "starts": (start(),), "submits": 1, "requeue": True, **fields}
    )


def test_a_requeue_is_noted_before_the_one_call_and_its_answer_afterwards() -> None:
    current, told = play(running(), REQUEUE)
    assert current.requeues == (AGAIN,)
    assert told == [events.RequeueJob(id=KEY, job_id=7)]
    current, told = play(current, DONE)
    assert [one.outcome for one in current.requeues] == ["done"]
    assert current.refused is None
    assert told == [events.Watch(urgent=True)]
    current, told = play(current, ended(), seen("PENDING"))
    assert current.state is JobState.PENDING


@pytest.mark.parametrize("requeue", [True, False])
def test_a_new_leader_closes_no_job_that_slurm_has_not_called_ended(requeue: bool) -> None:
    """Between the end of a start and Slurm's word a requeueable job may be on its way to the next one."""
    over, _ = play(running(requeue=requeue, outputs_pending=True), ended())
    current, told = play(over, events.Begun(taken_up=True))
    assert current == over
    fetched = [events.Drain(start=0), *([] if requeue else [events.CollectOutputs()])]
    assert told == [events.ReadClaims(), events.Watch(urgent=True), *fetched]
    current, _ = play(current, DRAINED, seen("PENDING"))
    assert current.state is JobState.PENDING


def test_the_same_requeue_again_does_nothing_whatever_came_of_it() -> None:
    current, _ = play(running(), REQUEUE)
    assert play(current, REQUEUE) == (current, [])
    current, _ = play(current, DONE)
    assert play(current, REQUEUE) == (current, [])
    refused, _ = play(running(state=JobState.PENDING), REQUEUE)
    assert [one.outcome for one in refused.requeues] == ["refused"]
    started = msgspec.structs.replace(refused, state=JobState.RUNNING)
    assert play(started, REQUEUE) == (started, []), "who asked was told that it was refused"


def test_a_requeue_whose_answer_nobody_saw_is_unknown_and_never_sent_again() -> None:
    noted, _ = play(running(), REQUEUE)
    assert play(noted, events.Begun())[0] == noted, "another step failed while Slurm is being told"
    current, told = play(noted, events.Begun(taken_up=True), REQUEUE)
    assert [(one.id, one.outcome) for one in current.requeues] == [(KEY, "unknown")]
    assert not any(isinstance(item, events.RequeueJob) for item in told)
    late, _ = play(current, DONE)
    assert [one.outcome for one in late.requeues] == ["done"]


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"requeue": False}, "wasn't submitted as one that may start again", "submit it with requeue=True"),
        ({"cancel": CANCEL}, "me@host asked for the job's end", "submit it again"),
        ({"state": JobState.PENDING}, "it is PENDING", "wait until it runs"),
        ({"state": JobState.COMPLETING}, "it is COMPLETING", "wait until it runs"),
        ({"state": JobState.SUBMITTING, "job_id": None}, "it is SUBMITTING", "wait until it runs"),
        ({"state": JobState.COMPLETED}, "the job has ended: COMPLETED", "submit it again"),
        ({"requeues": (msgspec.structs.replace(AGAIN, id=OTHER),)}, "is being told", "look at the job's state"),
        ({"verdict": JobState.FAILED}, "isn't running", "wait until it runs"),
    ],
)
def test_a_requeue_that_cant_be_is_refused_in_the_record(fields: dict[str, Any], message: str, hint: str) -> None:
    state = fields.get("state", JobState.RUNNING)
    current, told = play(running(**fields), REQUEUE)
    assert told == []
    assert current.state is state
    assert current.refused is not None
    assert (current.refused.id, current.refused.code) == (KEY, "not-requeueable")
    assert message in current.refused.message
    assert hint in current.refused.hint
    assert (current.requeues[-1].id, current.requeues[-1].outcome) == (KEY, "refused")


def test_what_slurm_refuses_is_shown_and_a_silence_is_not_taken_for_a_refusal() -> None:
    noted, _ = play(running(), REQUEUE)
    no = events.RequeueAnswered(id=KEY, outcome="refused", code="refused", message="Requested operation is disabled")
    current, _ = play(noted, no)
    assert current.refused is not None
    assert (current.refused.id, current.refused.message) == (KEY, "Requested operation is disabled")
    current, _ = play(noted, events.RequeueAnswered(id=KEY, outcome="unknown", message="no answer"))
    assert current.refused is None
    assert [(one.outcome, one.message) for one in current.requeues] == [("unknown", "no answer")]


def test_requeues_are_limited_and_none_is_forgotten() -> None:
    many = tuple(
        RequeueAsked(id=f"01JD00000000000000000000{number:02}", at=1.0, submitter="me", outcome="done")
        for number in range(1, MAX_REQUEUES + 1)
    )
    current, told = play(running(requeues=many), REQUEUE)
    assert told == []
    assert current.requeues == many
    assert current.refused is not None
    assert current.refused.id == KEY


def test_outputs_are_awaited_before_the_job_is_final() -> None:
    running = record(JobState.RUNNING, job_id=7, starts=(start(),), outputs_pending=True)
    current, told = play(running, ended(), seen("COMPLETED", exit_code=0), DRAINED)
    assert events.CollectOutputs() in told
    assert not current.state.is_final
    current, _ = play(current, events.OutputsCollected(outputs=()))
    assert current.state is JobState.COMPLETED


_OBSERVED = [
    seen(state, job_id, *flags, exit_code=0)
    for state in ("PENDING", "RUNNING", "SUSPENDED", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    for job_id in (7, 8)
    for flags in ((), ("COMPLETING",))
]
EVENTS: list[Event] = [
    events.Begun(),
    STAGED,
    events.StagingFailed(code="spool-full", message="full"),
    events.Submitted(job_id=7),
    events.SubmitRefused(message="no"),
    events.SubmitNotSent(message="down"),
    events.SubmitUnknown(message="no answer"),
    events.SubmitAgain(),
    events.Looked(observation=None),
    events.Looked(observation=seen("RUNNING").observation),
    *_OBSERVED,
    events.Poked(),
    events.Unlinked(start=0),
    events.Denied(),
    events.Accounted(row=None),
    events.Accounted(row=row("COMPLETED")),
    events.Accounted(row=row("RUNNING", final=False)),
    events.Claimed(starts=()),
    CLAIMED,
    events.Claimed(starts=(start(), start(1))),
    events.Claimed(starts=(start(job_id=9),)),
    events.Claimed(starts=(start(node=AGENT_NODE),)),
    SEALED,
    events.Claimed(starts=(start(), start(1), start(2, node=AGENT_NODE))),
    events.Looked(observation=None, row=row("FAILED")),
    events.TwinSeen(job_id=9, over=False),
    events.TwinSeen(job_id=7, over=True),
    ended(0),
    ended(0, 3),
    ended(1),
    DRAINED,
    events.Drained(start=1, sizes={}),
    events.OutputsCollected(outputs=()),
    events.CancelRequested(cancel=CANCEL),
    events.Begun(taken_up=True),
    REQUEUE,
    DONE,
    events.CancelAgain(),
]


def _says_completed(event: Event, job_id: int | None) -> bool:
    """Tell whether this is a source on which a success may be based."""
    if isinstance(event, events.Observed):
        return event.observation.state == "COMPLETED" and event.observation.job_id == job_id
    return isinstance(event, events.Accounted) and event.row is not None and event.row.final


@settings(max_examples=3000, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=30), st.booleans(), st.booleans())
def test_in_every_order_of_events_the_rules_hold(happened: list[Event], requeue: bool, outputs: bool) -> None:
    current = record(requeue=requeue, outputs_pending=outputs)
    for event in happened:
        before = current
        current, told = lifecycle.advance(current, event)
        assert may_follow(before.state, current.state)
        if before.state.is_final:
            assert current.state is before.state
        if current.verdict is JobState.COMPLETED and before.verdict is not JobState.COMPLETED:
            assert _says_completed(event, before.job_id), "a success that nobody stated"
            if isinstance(event, events.Accounted):
                assert before.lookups, "accounting believed although the controller knows the job"
        if current.state is JobState.COMPLETED:
            last = current.starts[-1]
            assert last.node != AGENT_NODE, "a success without a claim"
            assert last.job_id == current.job_id, "a success of another job"
        if current.state.is_final and current.starts:
            assert all(item.sizes is not None for item in current.starts), "bytes may be missing"
            assert not current.outputs_pending
            last = current.starts[-1]
            closed = current.sealed or last.node == AGENT_NODE or (last.ended_at is not None and not requeue)
            assert closed, "final, and a payload may still run"
        if events.SubmitJob() in told:
            assert current.state is JobState.SUBMITTING
            assert current.maybe_submitted, "a submit without its intent in the record"
            assert not current.starts, "a submit after a claim"
            assert current.cancel is None, "a submit after a cancel"
        for item in told:
            if isinstance(item, events.CancelJob):
                assert current.cancel is not None or item.job_id in current.twins, "a cancel that nobody asked for"
                assert item.job_id != current.job_id or current.cancel is not None, "the job taken for its twin"
        assert set(before.twins) <= set(current.twins)
        assert len({item.number for item in current.starts}) == len(current.starts)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=30), st.booleans())
def test_slurm_is_told_once_to_requeue_a_job_that_may_start_again(happened: list[Event], requeue: bool) -> None:
    current, times = running(requeue=requeue), 0
    for event in [*happened, REQUEUE]:
        before = current
        current, told = lifecycle.advance(current, event)
        assert {one.id for one in before.requeues} <= {one.id for one in current.requeues}
        if any(isinstance(item, events.RequeueJob) for item in told):
            times += 1
            assert requeue, "a requeue of a job that mustn't start again"
            assert before.cancel is None, "a requeue after a cancel"
            assert before.state is JobState.RUNNING
            assert current.requeues == (AGAIN,), "a requeue that isn't in the record"
    assert times <= 1, "a requeue that was repeated"
    assert [one.id for one in current.requeues] == [KEY]


def test_every_event_is_handled_in_every_state() -> None:
    for state in JobState:
        for event in EVENTS:
            after, _ = lifecycle.advance(record(state, job_id=7), event)
            assert may_follow(state, after.state)


def test_every_state_can_reach_an_end() -> None:
    assert set(TRANSITIONS) == set(JobState)
    for state in set(JobState) - FINAL:
        assert TRANSITIONS[state] & FINAL


def test_a_record_survives_the_wire_unchanged() -> None:
    full = record(JobState.COMPLETED, job_id=7, starts=(start(),), cancel=CANCEL)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(full), type=Record) == full


# ---------------------------------------------------------------------- tasks of an array


def task(state: JobState = JobState.PENDING, **fields: Any) -> Record:
    return record(state, **{"tasks": 3, "task": 1, "submits": 1, "maybe_submitted": True, "job_id": 7, **fields})


def own(number: int = 0, own_id: int | None = 9) -> Start:
    return msgspec.structs.replace(start(number), task_job_id=own_id)


def test_a_task_learns_its_own_id_whoever_tells_first() -> None:
    current, _ = play(task(), events.Claimed(starts=(own(),)))
    assert (current.job_id, current.task_job_id) == (7, 9)
    current, told = play(task(), CLAIMED, events.Claimed(starts=(own(),)))
    assert (current.task_job_id, current.starts[0].task_job_id) == (9, 9)
    assert not any(isinstance(item, events.CancelJob) for item in told)
    current, _ = play(task(), seen("RUNNING"))
    assert current.task_job_id is None
    shown = msgspec.structs.replace(seen("RUNNING").observation, task_job_id=9)
    assert play(task(), events.Observed(observation=shown))[0].task_job_id == 9


def test_a_task_whose_array_is_still_there_was_cancelled_and_isnt_submitted_again() -> None:
    asked, told = play(task(cancel=CANCEL), events.Denied(removed=True))
    assert told == [events.TakeClaim(start=0)]
    assert asked.state is JobState.PENDING
    # By somebody else: accounting may still know how it ended.
    current, told = play(task(), events.Denied(removed=True))
    assert events.AskAccounting(again=lifecycle.UNCLAIMED_PATIENCE) in told
    current, told = play(current, events.Accounted(row=None))
    assert told == [events.TakeClaim(start=0)]
    current, told = play(current, events.Claimed(starts=(start(0, node=AGENT_NODE),)))
    assert (current.state, current.submits) == (JobState.CANCELLED, 1)
    assert told == [events.AskAccounting(figures=True, again=lifecycle.FIGURES_PATIENCE)]
    # A runner that was faster than all of that counts.
    current, told = play(task(), events.Denied(removed=True), events.Accounted(row=None), CLAIMED)
    assert current.state is JobState.RUNNING


def test_a_task_whose_array_is_gone_was_forgotten_and_is_submitted_again() -> None:
    current, told = play(task(), events.Denied(), events.Accounted(row=None))
    assert (current.state, current.submits) == (JobState.SUBMITTING, 2)
    assert told[-1] == events.SubmitJob()
