"""Job arrays: one request for many tasks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgspec

from slurmbus_protocol.errors import InvalidBody
from slurmbus_protocol.messages import FileRef, JobSpec, Record, TaskSpec

Context = dict[str, msgspec.Raw]


def indexes(job: JobSpec) -> tuple[int, ...]:
    """Give the numbers of a request's tasks; a single job is its task 0."""
    return tuple(task.index for task in job.tasks) or (0,)


def check_tasks(job: JobSpec) -> None:
    """Raise InvalidBody when the tasks of an array can't be told apart, or can't be put together."""
    numbers = [task.index for task in job.tasks]
    if any(one >= other for one, other in pairwise(numbers)):
        raise InvalidBody("tasks: their indexes must be different and ascend")
    merged = [task for task in job.tasks if task.pipes_context is not None]
    if merged:  # the large part needn't be read for each
        merged_context(job.pipes_context, merged[0])
    for task in merged[1:]:
        merged_context(b"{}", task)


def task_of(job: JobSpec, index: int) -> TaskSpec | None:
    """Give a task of a request, or None: it is a single job, or has no such task. The tasks must have been checked."""
    at = bisect_left(job.tasks, index, key=lambda task: task.index)
    return job.tasks[at] if at < len(job.tasks) and job.tasks[at].index == index else None


def spec_of_task(job: JobSpec, task: TaskSpec) -> JobSpec:
    """Give the job that one task of an array is."""
    argv = (*(task.argv or job.plan.argv), *task.args)
    return msgspec.structs.replace(
        job,
        plan=msgspec.structs.replace(job.plan, argv=argv),
        env={**job.env, **task.env},
        files=(*shared_files(job, task), *task.files),
        pipes_context=merged_context(job.pipes_context, task),
        tasks=(),
        array_throttle=None,
    )


def shared_files(job: JobSpec, task: TaskSpec) -> tuple[FileRef, ...]:
    """Give the files that a task has in common with its siblings."""
    own = {file.path for file in task.files}
    return tuple(file for file in job.files if file.path not in own)


def merged_context(shared: bytes | None, task: TaskSpec) -> bytes | None:
    """Put a task's members over those of the Pipes context that all tasks share.

    Raises:
        InvalidBody: one of them is no JSON object, or there is nothing to put them over.
    """
    if task.pipes_context is None:
        return shared
    try:
        own = msgspec.json.decode(task.pipes_context, type=Context)
        common = msgspec.json.decode(shared or b"{}", type=Context)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidBody(f"tasks: the Pipes context of task {task.index} is no JSON object: {error}") from error
    if shared is None:
        raise InvalidBody(f"tasks: task {task.index} has a Pipes context, and the job has none")
    return msgspec.json.encode({**common, **own})


def record_of_task(records: Mapping[int, Record], index: int) -> Record | None:
    """Give what the records of a job, by their numbers, say of a task.

    An array that was refused, or cancelled before it came, never had tasks: the record of number 0 is the end of all.
    """
    own, whole = records.get(index), records.get(0)
    if own is not None or whole is None or not is_end_of_all(whole):
        return own
    return msgspec.structs.replace(whole, task=index)


def is_end_of_all(record: Record) -> bool:
    """Tell whether a record is the end of a whole job, of a single one or of an array that never had tasks."""
    return record.state.is_final and not record.tasks


def slurm_id(record: Record) -> str:
    """Give the id by which Slurm's commands know a job: ``123``, or ``123_4`` for a task of an array."""
    if record.job_id is None:
        return ""
    return f"{record.job_id}_{record.task - record.array_base}" if record.tasks else str(record.job_id)


def compact(numbers: Iterable[int]) -> str:
    """Write task numbers as Slurm does: ``0-3,7``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
