"""What the tasks of a job array are to an agent: jobs of their own that Slurm gets, and ends, together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.scheduler.array import split_name, task_name
from slurmbus_agent.scheduler.base import BatchJob, Scheduler, SchedulerError, Unavailable
from slurmbus_protocol import subjects
from slurmbus_protocol.arrays import spec_of_task, task_of
from slurmbus_protocol.errors import InvalidName
from slurmbus_protocol.messages import JobSpec, Record
from slurmbus_protocol.states import JobState

if TYPE_CHECKING:
    from slurmbus_agent.job import Job

_ON_THEIR_WAY = {JobState.ACCEPTED, JobState.STAGING}
_BASE_MARK = "+"
Spawn = Callable[[Coroutine[Any, Any, None]], object]


def task_fields(job: JobSpec, index: int, array_size: int) -> dict[str, Any]:
    """Give what a record says of its task; nothing for a single job."""
    task = task_of(job, index)
    if task is None:
        return {}
    return {
        "task": index,
        "tasks": len(job.tasks),
        "task_name": task.name,
        "array_base": index // array_size * array_size,
    }


def spec_of(job: JobSpec, record: Record) -> JobSpec:
    """Give the job that a record is about: the request's, or that of its task."""
    task = task_of(job, record.task)
    return job if task is None else spec_of_task(job, task)


def array_name(record: Record) -> str:
    """Give the name in Slurm of a job, or of the array that a task belongs to."""
    base = f"{_BASE_MARK}{record.array_base}" if record.array_base else ""
    return f"{record.name}.{record.key}{base}"


def slurm_name(record: Record) -> str:
    """Give the name by which one job or one task is found in Slurm."""
    name = array_name(record)
    return task_name(name, record.task - record.array_base) if record.tasks else name


def parse_slurm_name(name: str) -> tuple[str, int] | None:
    """Give the key and the task of a job of ours in Slurm; None for somebody else's."""
    name, indexes = split_name(name)
    key, _, base = name.rpartition(".")[2].partition(_BASE_MARK)
    try:
        return subjects.check_key(key), int(base or 0) + (indexes[0] if indexes else 0)
    except (InvalidName, ValueError):
        return None


class _Submission:
    """Tasks that go to Slurm in one call."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.answers: dict[int, asyncio.Future[int]] = {}
        self.news = asyncio.Event()


class _Ending:
    """Tasks that are cancelled in one call."""

    def __init__(self) -> None:
        self.indexes: set[int] = set()
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class ArrayQueue:
    """Puts what the tasks of an array ask of Slurm one by one into few calls.

    Each task has made its intent durable before it comes here, and each hears how the call ended: as an id, as a no, as
    "not asked", or without an answer. What follows from that is each task's own affair, as for a single job.

    Args:
        scheduler: whom to ask.
        jobs: all jobs of this agent.
        spawn: starts a task that ends with the agent's leadership.
        array_size: how many tasks Slurm gets as one array.
    """

    def __init__(
        self, scheduler: Scheduler, jobs: Mapping[tuple[str, int], Job], spawn: Spawn, array_size: int
    ) -> None:
        self._array_size = array_size
        self._scheduler = scheduler
        self._jobs = jobs
        self._spawn = spawn
        self._submissions: dict[str, _Submission] = {}
        self._endings: dict[tuple[int, str], _Ending] = {}

    # ------------------------------------------------------------------ submitting

    async def submit(self, job: Job) -> int:
        """Submit a task together with its siblings that are ready, too; give the array's id.

        Raises:
            SchedulerError: as the scheduler's own ``submit``.
        """
        name = array_name(job.record)
        submission = self._submissions.get(name)
        if submission is None:
            submission = self._submissions[name] = _Submission()
            self._spawn(self._carry_out(name, submission))
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        submission.jobs[job.record.task] = job
        submission.answers[job.record.task] = answer
        submission.news.set()
        return await answer

    async def _carry_out(self, name: str, submission: _Submission) -> None:
        await self._gather(submission)
        del self._submissions[name]  # who comes later goes with another call
        wanted: dict[int, Job] = {}
        for task, job in submission.jobs.items():
            if job.record.cancel is not None:
                _fail(submission.answers[task], Unavailable("it was cancelled before Slurm was asked"))
            elif not submission.answers[task].done():
                wanted[task] = job
        if not wanted:
            return
        try:
            job_id = await self._scheduler.submit(self._batch_of(wanted))
        except SchedulerError as error:
            for task in wanted:
                _fail(submission.answers[task], error)
        else:
            for task in wanted:
                if not submission.answers[task].done():
                    submission.answers[task].set_result(job_id)

    async def _gather(self, submission: _Submission) -> None:
        """Wait for the siblings that are still being staged, as long as they keep coming."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + budgets.ARRAY_PATIENCE
        while True:
            submission.news.clear()
            # One that is staged may be about to come: it gets a moment in any case.
            waiting = self._more_to_come(submission) and loop.time() < patience
            try:
                async with asyncio.timeout(budgets.ARRAY_LOOK if waiting else budgets.ARRAY_SETTLED):
                    await submission.news.wait()
                patience = loop.time() + budgets.ARRAY_PATIENCE
            except TimeoutError:
                if not waiting:
                    return

    def _more_to_come(self, submission: _Submission) -> bool:
        first = next(iter(submission.jobs.values())).record
        siblings = range(first.array_base, first.array_base + self._array_size)
        return any(
            sibling.record.state in _ON_THEIR_WAY and sibling.record.array_base == first.array_base
            for task in siblings
            if task not in submission.jobs and (sibling := self._jobs.get((first.key, task))) is not None
        )

    def _batch_of(self, jobs: Mapping[int, Job]) -> BatchJob:
        """Give the array of these tasks."""
        first = next(iter(jobs.values()))
        indexes = tuple(sorted(task - first.record.array_base for task in jobs))
        return msgspec.structs.replace(
            first.batch_job(), array=indexes, array_throttle=first.throttle(self._array_size)
        )

    # ------------------------------------------------------------------ cancelling

    async def cancel(self, job_id: int, name: str) -> bool:
        """Cancel a task of an array together with its siblings that shall end, too; never any other one.

        Args:
            job_id: the array's.
            name: the task's.

        Raises:
            SchedulerError: as the scheduler's own ``cancel``.
        """
        array, indexes = split_name(name)
        ending = self._endings.get((job_id, array))
        if ending is None:
            ending = self._endings[job_id, array] = _Ending()
            self._spawn(self._end(job_id, array, ending))
        ending.indexes.update(indexes or ())
        return await asyncio.shield(ending.answer)

    async def _end(self, job_id: int, array: str, ending: _Ending) -> None:
        known = 0
        while known != len(ending.indexes):
            known = len(ending.indexes)
            await asyncio.sleep(budgets.ARRAY_CANCEL_TOGETHER)
        del self._endings[job_id, array]
        try:
            found = await self._scheduler.cancel(job_id, task_name(array, ending.indexes))
        except SchedulerError as error:
            _fail(ending.answer, error)
            ending.answer.exception()  # whoever waited may be gone
        else:
            ending.answer.set_result(found)


def _fail(answer: asyncio.Future[Any], error: SchedulerError) -> None:
    if not answer.done():
        answer.set_exception(error)
