"""Arrays in an agent: what a task is, and how few calls many tasks need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from slurmbus_agent import budgets
from slurmbus_agent.arrays import ArrayQueue, array_name, parse_slurm_name, slurm_name, spec_of, task_fields
from slurmbus_agent.job import Job
from slurmbus_agent.scheduler.base import BatchJob, OutcomeUnknown, Refused, Scheduler, SchedulerError, Unavailable
from slurmbus_protocol import arrays, capabilities
from slurmbus_protocol.errors import InvalidBody
from slurmbus_protocol.messages import CancelAsked, CommandPlan, FileRef, JobOptions, JobSpec, Record, TaskSpec
from slurmbus_protocol.states import JobState

KEY = "01JD0000000000000000000000"
PLAN = CommandPlan(argv=("run", "it"))


def file(path: str, digest: str = "a") -> FileRef:
    return FileRef(path=path, sha256=digest * 64, size=1)


def job_spec(*tasks: TaskSpec, **fields: Any) -> JobSpec:
    return JobSpec(name="train", plan=PLAN, tasks=tasks, **fields)


def record(task: int = 0, **fields: Any) -> Record:
    base: dict[str, Any] = {"key": KEY, "site": "a", "epoch": 1, "name": "train", "submitter": "me", "tasks": 3}
    base |= {"created_at": 1.0, "updated_at": 1.0, "state": JobState.SUBMITTING, "task": task}
    return Record(**{**base, **fields})


# ---------------------------------------------------------------------- what a task is


def test_a_task_shares_the_job_and_has_its_own_over_it() -> None:
    job = job_spec(
        TaskSpec(index=0),
        TaskSpec(
            index=4,
            args=("x", "y"),
            env={"A": "4"},
            files=(file("own"), file("both", "c")),
            pipes_context=b'{"extras":{"n":4}}',
        ),
        TaskSpec(index=5, argv=("other",), args=("z",)),
        env={"A": "0", "B": "1"},
        files=(file("shared"), file("both", "b")),
        pipes_context=b'{"extras":{},"run_id":"r"}',
        array_throttle=2,
    )
    one = spec_of(job, record(4))
    assert one.plan.argv == ("run", "it", "x", "y")
    assert one.env == {"A": "4", "B": "1"}
    assert [(ref.path, ref.sha256[0]) for ref in one.files] == [("shared", "a"), ("own", "a"), ("both", "c")]
    assert msgspec.json.decode(one.pipes_context or b"") == {"extras": {"n": 4}, "run_id": "r"}
    assert (one.tasks, one.array_throttle) == ((), None)
    assert spec_of(job, record(5)).plan.argv == ("other", "z")
    assert spec_of(job, record(0)).pipes_context == job.pipes_context
    single = JobSpec(name="one", plan=PLAN)
    assert spec_of(single, record(tasks=0)) is single


def test_what_cant_be_told_apart_or_put_together_is_refused() -> None:
    for wrong in (
        job_spec(TaskSpec(index=1), TaskSpec(index=1)),
        job_spec(TaskSpec(index=2), TaskSpec(index=1)),
        job_spec(TaskSpec(index=0, pipes_context=b"{}")),
        job_spec(TaskSpec(index=0, pipes_context=b"[1]"), pipes_context=b"{}"),
        job_spec(TaskSpec(index=0, pipes_context=b"{}"), TaskSpec(index=1, pipes_context=b"x"), pipes_context=b"{}"),
    ):
        with pytest.raises(InvalidBody, match="tasks"):
            arrays.check_tasks(wrong)
    arrays.check_tasks(job_spec(TaskSpec(index=0), TaskSpec(index=7)))


def test_a_long_array_is_several_for_slurm() -> None:
    job = job_spec(*(TaskSpec(index=index, name=f"t{index}") for index in (0, 999, 1000, 2345)))
    fields = [task_fields(job, index, 1000) for index in (0, 999, 1000, 2345)]
    assert [found["array_base"] for found in fields] == [0, 0, 1000, 2000]
    last = record(2345, **{name: value for name, value in fields[3].items() if name != "task"})
    assert (last.tasks, last.task_name) == (4, "t2345")
    assert array_name(last) == f"train.{KEY}+2000"
    assert slurm_name(last) == f"train.{KEY}+2000[345]"
    assert parse_slurm_name(slurm_name(last)) == (KEY, 2345)
    assert arrays.slurm_id(msgspec.structs.replace(last, job_id=12)) == "12_345"
    assert parse_slurm_name(f"train.{KEY}") == (KEY, 0)
    assert parse_slurm_name("somebody's job[3]") is None


def test_an_agent_without_arrays_would_overlook_the_tasks() -> None:
    assert capabilities.ARRAYS in capabilities.needed(job_spec(TaskSpec(index=0)))
    assert capabilities.ARRAYS not in capabilities.needed(JobSpec(name="one", plan=PLAN))


# ---------------------------------------------------------------------- how few calls they need


class FakeJob:
    """A job, as far as the queue looks at it."""

    def __init__(self, task: int, state: JobState = JobState.SUBMITTING, **fields: Any) -> None:
        self.record = record(task, state=state, **fields)

    def batch_job(self) -> BatchJob:
        options = JobOptions()
        return BatchJob(
            name=array_name(self.record), script="", work_dir="/", output="", environment={}, options=options
        )

    def throttle(self, array_size: int) -> int | None:
        assert array_size == 1000
        return 2


class Lab:
    """A queue over a scheduler that answers as it is told."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, int], Job] = {}
        self.submitted: list[BatchJob] = []
        self.cancelled: list[tuple[int, str]] = []
        self.answer: SchedulerError | int = 77
        self._tasks: set[asyncio.Task[None]] = set()
        self.queue = ArrayQueue(cast("Scheduler", self), self.jobs, self._spawn, 1000)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def submit(self, job: BatchJob) -> int:
        self.submitted.append(job)
        if isinstance(self.answer, SchedulerError):
            raise self.answer
        return self.answer

    async def cancel(self, job_id: int, name: str) -> bool:
        self.cancelled.append((job_id, name))
        if isinstance(self.answer, SchedulerError):
            raise self.answer
        return True

    def add(self, task: int, state: JobState = JobState.SUBMITTING, **fields: Any) -> FakeJob:
        job = FakeJob(task, state, **fields)
        self.jobs[KEY, task] = cast("Job", job)
        return job

    def ask(self, job: FakeJob) -> asyncio.Task[int]:
        return asyncio.create_task(self.queue.submit(cast("Job", job)))


def play(scenario: Callable[[Lab], Any]) -> None:
    async def run() -> None:
        async with asyncio.timeout(20):
            await scenario(Lab())

    asyncio.run(run())


def test_tasks_wait_for_the_siblings_that_are_being_staged_and_go_together() -> None:
    async def scenario(lab: Lab) -> None:
        staged = [lab.add(task) for task in (0, 2, 5)]
        late = lab.add(7, JobState.STAGING)
        other = lab.add(1003, JobState.STAGING, array_base=1000)
        asked = [lab.ask(job) for job in staged]
        await asyncio.sleep(0)
        await asyncio.sleep(2 * budgets.ARRAY_LOOK)
        assert lab.submitted == []
        late.record = record(7)
        assert await asyncio.gather(*asked, lab.ask(late)) == [77] * 4
        (batch,) = lab.submitted
        assert (batch.array, batch.array_throttle) == ((0, 2, 5, 7), 2)
        other.record = record(1003, array_base=1000)
        assert await lab.ask(other) == 77
        assert (lab.submitted[1].array, lab.submitted[1].name) == ((3,), f"train.{KEY}+1000")

    play(scenario)


def test_a_task_whose_files_dont_come_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "ARRAY_PATIENCE", 0.3)
    monkeypatch.setattr(budgets, "ARRAY_LOOK", 0.05)

    async def scenario(lab: Lab) -> None:
        ready, stuck = lab.add(0), lab.add(1, JobState.STAGING)
        assert await lab.ask(ready) == 77
        stuck.record = record(1)
        assert await lab.ask(stuck) == 77
        assert [batch.array for batch in lab.submitted] == [(0,), (1,)]

    play(scenario)


@pytest.mark.parametrize("error", [Refused("no"), Unavailable("down"), OutcomeUnknown("silence")])
def test_each_task_hears_how_the_call_ended(error: SchedulerError) -> None:
    async def scenario(lab: Lab) -> None:
        lab.answer = error
        results = await asyncio.gather(*(lab.ask(lab.add(task)) for task in range(3)), return_exceptions=True)
        assert results == [error] * 3
        assert len(lab.submitted) == 1
        # A later one is a call of its own, of exactly those that ask again.
        lab.answer = 78
        assert await lab.ask(cast("FakeJob", lab.jobs[KEY, 1])) == 78
        assert lab.submitted[1].array == (1,)

    play(scenario)


def test_what_was_cancelled_meanwhile_isnt_submitted() -> None:
    async def scenario(lab: Lab) -> None:
        asked = CancelAsked(id=KEY, at=1.0, submitter="me")
        gone = lab.ask(lab.add(0, cancel=asked))
        kept = lab.ask(lab.add(1))
        assert await kept == 77
        with pytest.raises(Unavailable, match="cancelled before"):
            await gone
        assert [batch.array for batch in lab.submitted] == [(1,)]

    play(scenario)


def test_cancels_of_an_arrays_tasks_are_one_call() -> None:
    async def scenario(lab: Lab) -> None:
        name = f"train.{KEY}"
        calls = [lab.queue.cancel(12, f"{name}[{index}]") for index in (4, 0, 1, 2)]
        calls.append(lab.queue.cancel(13, f"{name}[9]"))
        assert await asyncio.gather(*calls) == [True] * 5
        assert sorted(lab.cancelled) == [(12, f"{name}[0-2,4]"), (13, f"{name}[9]")]
        lab.answer = OutcomeUnknown("silence")
        again = await asyncio.gather(
            *(lab.queue.cancel(12, f"{name}[{index}]") for index in (0, 1)), return_exceptions=True
        )
        assert [type(one) for one in again] == [OutcomeUnknown] * 2

    play(scenario)
