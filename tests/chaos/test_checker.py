"""The checker finds nothing in a history in which everything went well, and each thing that is planted into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import pytest

from chaos.checker import Promise, check
from chaos.history import (
    Execution,
    FaultHistory,
    JobHistory,
    LeaseSighting,
    MissingPiece,
    Piece,
    RunHistory,
    SlurmRow,
    StoredChunk,
    StoredRecord,
)
from chaos.measures import recoveries, takeovers
from chaos.payload import LINE
from chaos.workload import Kind, PlannedJob
from slurmbus_agent.runner.claims import AGENT_NODE
from slurmbus_agent.runner.protocol import EXIT_TWIN
from slurmbus_protocol.messages import CancelAsked, Record, Start
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid

BEGIN = 1_000_000.0
LINES = {Stream.STDOUT: 10, Stream.STDERR: 2, Stream.MESSAGES: 3}
ID = 7


def record(state: JobState, at: float, **fields: object) -> StoredRecord:
    number = int((at - BEGIN) * 100)
    return StoredRecord(
        number,
        at,
        Record(
            key="01JD0000000000000000000000",
            site="chaos",
            epoch=1,
            state=state,
            name="j0000",
            submitter="somebody",
            created_at=BEGIN,
            updated_at=at,
            **fields,  # type: ignore[arg-type]
        ),
    )


def good_job(kind: Kind = Kind.SHORT, **plan: object) -> JobHistory:
    """A job that ran once, for two seconds, and ended well."""
    planned = PlannedJob("j0000", kind, 0.0, 2.0, dict(LINES), **plan)  # type: ignore[arg-type]
    sizes = {stream.value: planned.size(stream) for stream in Stream}
    start = Start(number=0, job_id=ID, node="c1", nonce="n", sizes=sizes)
    job = JobHistory(planned, key=new_ulid(), submit_sent=BEGIN, accepted=BEGIN + 0.1)
    job.records = [
        record(JobState.ACCEPTED, BEGIN + 0.2),
        record(JobState.STAGING, BEGIN + 0.3),
        record(JobState.SUBMITTING, BEGIN + 0.4, submits=1),
        record(JobState.PENDING, BEGIN + 0.5, submits=1, job_id=ID),
        record(JobState.RUNNING, BEGIN + 1.1, submits=1, job_id=ID),
        record(JobState.COMPLETING, BEGIN + 3.1, submits=1, job_id=ID),
        record(JobState.COMPLETED, BEGIN + 3.2, submits=1, job_id=ID, exit_code=0, starts=(start,)),
    ]
    job.finished = job.records[-1].record
    job.executions = [Execution(ID, "c1", 99, BEGIN + 1, BEGIN + 3, BEGIN + 3, 0)]
    job.rows = [SlurmRow(ID, "j0000", "COMPLETED", 0, 0, "c1", BEGIN, BEGIN + 1, BEGIN + 3)]
    job.spooled.claims = {0: f"{ID}:c1:n:{int((BEGIN + 1) * 1000)}"}
    for stream in Stream:
        data = planned.expected(stream)
        job.spooled.sizes[0, stream] = len(data)
        half = len(data) // 2
        job.pieces += [Piece(0, stream, 0, data[:half]), Piece(0, stream, half, data[half:])]
        job.chunks += [
            StoredChunk(0, stream, 100, 0, half, 0),
            StoredChunk(0, stream, 101, half, len(data) - half, 0),
        ]
    return job


def end_with(job: JobHistory, state: JobState, **fields: object) -> None:
    last = msgspec.structs.replace(job.records[-1].record, state=state, **fields)
    job.records[-1] = dataclasses.replace(job.records[-1], record=last)
    job.finished = last


def run_of(*jobs: JobHistory, faults: list[FaultHistory] | None = None) -> RunHistory:
    return RunHistory(1, BEGIN, BEGIN + 60, jobs=list(jobs), faults=faults or [])


def broken(run: RunHistory) -> set[Promise]:
    verdict = check(run)
    return {promise for promise in Promise if verdict.of(promise)}


def test_a_history_in_which_all_went_well() -> None:
    verdict = check(run_of(good_job()))
    assert verdict.breaches == []
    assert verdict.counts.expected == verdict.counts.arrived == 15 * LINE
    assert (verdict.counts.jobs, verdict.counts.executions, verdict.counts.twins) == (1, 1, 0)


def second_execution(job: JobHistory) -> None:
    job.executions.append(Execution(8, "c2", 100, BEGIN + 5, BEGIN + 6, BEGIN + 6, 0))


def execution_at_the_same_time(job: JobHistory) -> None:
    job.executions.append(Execution(8, "c2", 100, BEGIN + 2, BEGIN + 4, BEGIN + 4, 0))


def twin(job: JobHistory) -> None:
    job.rows.append(SlurmRow(8, "j0000", "FAILED", EXIT_TWIN, 0, "c2", BEGIN + 1, BEGIN + 2, BEGIN + 2))


def lost_byte(job: JobHistory) -> None:
    last = job.pieces[-1]
    job.pieces[-1] = dataclasses.replace(last, data=last.data[:-1])


def byte_lost_in_the_middle(job: JobHistory) -> None:
    first = job.pieces[0]
    job.pieces[0] = dataclasses.replace(first, data=first.data[:-1])


def repeated_byte(job: JobHistory) -> None:
    second = job.pieces[1]
    repeated = job.plan.expected(second.stream)[second.offset - 1 : second.offset]
    job.pieces[1] = dataclasses.replace(second, offset=second.offset - 1, data=repeated + second.data)


def wrong_byte(job: JobHistory) -> None:
    first = job.pieces[0]
    job.pieces[0] = dataclasses.replace(first, data=b"\0" + first.data[1:])


def told_gap(job: JobHistory) -> None:
    job.gaps.append(MissingPiece(0, Stream.STDOUT, 0, 3, "the spool doesn't hold them any more"))


def repeated_on_the_bus(job: JobHistory) -> None:
    job.chunks.append(dataclasses.replace(job.chunks[-1], sequence=102))


def hole_on_the_bus(job: JobHistory) -> None:
    job.chunks[1] = dataclasses.replace(job.chunks[1], offset=job.chunks[1].offset + 5)


def failed_instead(job: JobHistory) -> None:
    end_with(job, JobState.FAILED, exit_code=1)


def lost_instead(job: JobHistory) -> None:
    end_with(job, JobState.LOST)


def success_that_was_none(job: JobHistory) -> None:
    job.rows = [dataclasses.replace(job.rows[0], state="FAILED", exit_code=3)]
    job.executions[0].exit_code = 3


def success_of_a_running_job(job: JobHistory) -> None:
    job.rows = [dataclasses.replace(job.rows[0], state="RUNNING", end=None)]
    job.executions[0].end = job.executions[0].exit_code = None
    for stream in Stream:
        job.spooled.contents[0, stream] = job.plan.expected(stream)


def success_without_an_execution(job: JobHistory) -> None:
    job.executions, job.spooled.claims, job.pieces, job.chunks = [], {}, [], []


def success_of_another_start(job: JobHistory) -> None:
    job.records[-1] = record(JobState.COMPLETED, BEGIN + 3.2, submits=1, job_id=8)


def rejected_without_a_reason(job: JobHistory) -> None:
    success_without_an_execution(job)
    job.rows = []
    job.records = [job.records[0], record(JobState.REJECTED, BEGIN + 1)]
    job.finished = job.records[-1].record


def still_pending(job: JobHistory) -> None:
    job.records = job.records[:4]
    job.finished = None


def no_record(job: JobHistory) -> None:
    job.records = []
    job.finished = None


def changed_after_its_end(job: JobHistory) -> None:
    job.records.append(record(JobState.RUNNING, BEGIN + 4, submits=1, job_id=ID))
    job.records.append(record(JobState.COMPLETED, BEGIN + 5, submits=1, job_id=ID))


def written_by_an_old_leader(job: JobHistory) -> None:
    newer = msgspec.structs.replace(job.records[3].record, epoch=2)
    job.records[3] = dataclasses.replace(job.records[3], record=newer)


def cancelled_and_went_on(job: JobHistory) -> None:
    job.cancel_sent = job.cancel_accepted = BEGIN + 0.5
    job.executions[0].end = job.executions[0].last_seen = BEGIN + 40


def reader_that_failed(job: JobHistory) -> None:
    job.problem = "LostMessages: 5 bytes"
    job.finished = None


def cancelled_by_nobody(job: JobHistory) -> None:
    job.rows = [dataclasses.replace(job.rows[0], state="CANCELLED by 1001")]
    end_with(job, JobState.CANCELLED)


def requeued_start_turned_away(job: JobHistory) -> None:
    job.plan = dataclasses.replace(job.plan, kind=Kind.REQUEUED)
    job.rows.append(
        dataclasses.replace(job.rows[0], state="FAILED", exit_code=EXIT_TWIN, start=BEGIN + 5, end=BEGIN + 5)
    )
    end_with(job, JobState.FAILED, exit_code=EXIT_TWIN)


PLANTED: list[tuple[Callable[[JobHistory], None], set[Promise]]] = [
    (second_execution, {Promise.TWICE}),
    (execution_at_the_same_time, {Promise.TWICE, Promise.AT_ONCE}),
    (twin, {Promise.TWIN}),
    (lost_byte, {Promise.MISSING}),
    (byte_lost_in_the_middle, {Promise.MISSING, Promise.WRONG_BYTES}),
    (repeated_byte, {Promise.REPEATED}),
    (wrong_byte, {Promise.WRONG_BYTES}),
    (told_gap, {Promise.MISSING}),
    (repeated_on_the_bus, {Promise.REPEATED}),
    (hole_on_the_bus, {Promise.MISSING}),
    (failed_instead, {Promise.WRONG_STATE}),
    (lost_instead, {Promise.WRONG_STATE}),
    (cancelled_by_nobody, {Promise.WRONG_STATE}),
    (requeued_start_turned_away, {Promise.WRONG_STATE}),
    (success_that_was_none, {Promise.WRONG_STATE}),
    (success_of_a_running_job, {Promise.WRONG_STATE}),
    (success_without_an_execution, {Promise.WRONG_STATE}),
    (success_of_another_start, {Promise.WRONG_STATE}),
    (rejected_without_a_reason, {Promise.WRONG_STATE}),
    (still_pending, {Promise.LOST}),
    (no_record, {Promise.LOST}),
    (changed_after_its_end, {Promise.HISTORY}),
    (written_by_an_old_leader, {Promise.HISTORY}),
    (cancelled_and_went_on, {Promise.CANCEL}),
    (reader_that_failed, {Promise.READER}),
]


@pytest.mark.parametrize(("plant", "promises"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_what_is_planted_is_found(plant: Callable[[JobHistory], None], promises: set[Promise]) -> None:
    job = good_job()
    plant(job)
    assert broken(run_of(job)) == promises


def test_a_twin_is_allowed_when_the_controller_forgot() -> None:
    job = good_job()
    twin(job)
    killed = FaultHistory("controller killed", "slurmctld", BEGIN + 1, BEGIN + 3)
    verdict = check(run_of(job, faults=[killed]))
    assert verdict.breaches == []
    assert verdict.counts.twins == 1


def test_a_start_that_slurm_repeated_and_that_ended_at_the_claim_may_be_told_in_slurms_words() -> None:
    job = good_job()
    job.rows = [dataclasses.replace(job.rows[0], state="FAILED", exit_code=EXIT_TWIN, node="c2")]
    assert broken(run_of(job)) == set()  # the payload ended well, and the controller had said so
    end_with(job, JobState.FAILED, exit_code=EXIT_TWIN)
    assert broken(run_of(job)) == set()
    end_with(job, JobState.TIMEOUT)
    assert broken(run_of(job)) == {Promise.WRONG_STATE}


def test_a_request_is_rejected_rightly_when_the_disk_was_full() -> None:
    job = good_job()
    rejected_without_a_reason(job)
    assert broken(run_of(job, faults=[FaultHistory("disk full", "spool", BEGIN, BEGIN + 2)])) == set()


def test_slurm_takes_an_end_for_a_cancel_when_it_forgot_the_start() -> None:
    job = good_job()
    job.rows = [dataclasses.replace(job.rows[0], state="CANCELLED by 0")]
    end_with(job, JobState.CANCELLED)
    assert broken(run_of(job)) == {Promise.WRONG_STATE}
    killed = [FaultHistory("controller killed", "slurmctld", BEGIN + 2, BEGIN + 4)]
    assert broken(run_of(job, faults=killed)) == set()
    cancelled_by_nobody(job)
    assert broken(run_of(job, faults=killed)) == {Promise.WRONG_STATE}


def never_started(job: JobHistory) -> None:
    """Turn a good job into one that was cancelled before it began."""
    job.executions, job.pieces, job.chunks = [], [], []
    job.spooled.claims = {0: f"{ID}:{AGENT_NODE}:n:{int((BEGIN + 1) * 1000)}"}
    job.spooled.sizes.clear()
    end_with(job, JobState.CANCELLED, starts=(), exit_code=None)


def test_slurm_ends_a_job_that_has_the_id_of_a_forgotten_one() -> None:
    """slurmd says "already running, do not launch second copy", so the second one never claims anything."""
    job = good_job()
    never_started(job)
    job.rows = [SlurmRow(ID, "j0000", "CANCELLED by 0", 0, 0, "c1", BEGIN, BEGIN + 1, BEGIN + 1)]
    earlier, later = good_job(), good_job()
    earlier.submit_sent, later.submit_sent = BEGIN - 20, BEGIN + 20
    killed = [FaultHistory("controller killed", "slurmctld", BEGIN - 15, BEGIN - 12)]

    def wrong(*others: JobHistory, faults: list[FaultHistory] | None = None) -> bool:
        return bool(check(run_of(job, *others, faults=faults)).of(Promise.WRONG_STATE))

    assert not wrong(earlier, faults=killed)
    assert wrong(earlier)  # nobody disturbed the controller
    assert wrong(faults=killed)
    assert wrong(later, faults=killed)


def cancelled_job() -> JobHistory:
    job = good_job(Kind.CANCELLED, cancel_after=0.5)
    job.cancel_sent = job.cancel_accepted = BEGIN + 1.5
    job.executions[0].end = job.executions[0].exit_code = None
    job.rows = [dataclasses.replace(job.rows[0], state="CANCELLED by 1001", exit_code=0, signal=15)]
    asked = CancelAsked(id=new_ulid(), at=BEGIN + 1.5, submitter="somebody")
    for stream in Stream:
        job.spooled.contents[0, stream] = job.plan.expected(stream)
    end_with(job, JobState.CANCELLED, cancel=asked)
    return job


def test_a_cancelled_job() -> None:
    assert broken(run_of(cancelled_job())) == set()
    job = cancelled_job()
    end_with(job, JobState.COMPLETED)
    assert broken(run_of(job)) == {Promise.WRONG_STATE}


def test_a_cancel_that_came_first_leaves_no_job() -> None:
    job = cancelled_job()
    job.executions, job.spooled.claims, job.pieces, job.chunks, job.rows = [], {}, [], [], []
    assert broken(run_of(job)) == set()


def test_a_job_sealed_by_the_agent_had_no_start() -> None:
    job = cancelled_job()
    job.executions, job.pieces, job.chunks, job.rows = [], [], [], []
    job.spooled.claims = {0: f"0:{AGENT_NODE}:n:{int(BEGIN * 1000)}"}
    assert broken(run_of(job)) == set()


def requeued_job() -> JobHistory:
    """Killed by a requeue after a second, then whole."""
    job = good_job(Kind.REQUEUED, requeue_after=1.0)
    first = Execution(ID, "c1", 98, BEGIN + 0.6, BEGIN + 0.9)
    job.executions.insert(0, first)
    job.spooled.claims = {0: f"{ID}:c1:m:{int(BEGIN * 1000)}", 1: f"{ID}:c1:n:{int((BEGIN + 1) * 1000)}"}
    job.rows.insert(0, dataclasses.replace(job.rows[0], state="REQUEUED", start=BEGIN))
    job.pieces = [dataclasses.replace(piece, start=1) for piece in job.pieces]
    job.chunks = [dataclasses.replace(chunk, start=1) for chunk in job.chunks]
    job.spooled.sizes = {(1, stream): size for (_, stream), size in job.spooled.sizes.items()}
    written = job.plan.expected(Stream.STDOUT)[:LINE]
    job.spooled.sizes[0, Stream.STDOUT] = LINE
    job.spooled.contents[0, Stream.STDOUT] = written
    job.pieces.insert(0, Piece(0, Stream.STDOUT, 0, written))
    (start,) = job.records[-1].record.starts
    killed = Start(number=0, job_id=ID, node="c1", nonce="m", sizes={"stdout": LINE})
    end_with(job, JobState.COMPLETED, starts=(killed, msgspec.structs.replace(start, number=1)))
    return job


def test_a_requeued_job_runs_again_and_its_first_bytes_count() -> None:
    assert broken(run_of(requeued_job())) == set()
    job = requeued_job()
    job.pieces.pop(0)
    assert broken(run_of(job)) == {Promise.MISSING}


def test_recovery_counts_from_the_end_of_the_fault() -> None:
    job = good_job()
    job.records = [dataclasses.replace(stored, time=stored.time + 8) for stored in job.records]
    run = run_of(job, faults=[FaultHistory("bus killed", "nats-server", BEGIN, BEGIN + 6)])
    (recovery,) = recoveries(run)
    assert (recovery.kind, recovery.what) == ("bus killed", "ended")
    assert recovery.seconds == pytest.approx(5.2)


def test_a_takeover_is_timed_from_the_fault() -> None:
    run = run_of(faults=[FaultHistory("agent killed (leader)", "login", BEGIN + 10, BEGIN + 12)])
    run.leases = [
        LeaseSighting(BEGIN, "login-1", "login", 1, 0.1),
        LeaseSighting(BEGIN + 15.5, "login2-1", "login2", 2, 0.1),
    ]
    assert takeovers(run) == {"agent killed (leader)": [pytest.approx(5.5)]}
