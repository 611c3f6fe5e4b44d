"""The tasks of a job array as users name them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dagster_slurmbus import _compat
from dagster_slurmbus.files import Files
from dagster_slurmbus.values import environment, wrong

MOST_TASKS = 10_000
_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayTask:
    """What one task of an array has of its own; everything else it shares with its siblings.

    Attributes:
        name: what it is called in logs, tables and errors; by default its partition key, its arguments or its number.
        args: go after the payload's arguments.
        env: environment variables, over those that all tasks have.
        extras: what the payload finds in ``context.extras``, over those that all tasks have.
        partition_key: what the payload finds as ``context.partition_key``; its metadata goes to that partition.
        files: files that this task gets besides those of all tasks.
    """

    name: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    partition_key: str | None = None
    files: Files | None = None


Task = ArrayTask | Mapping[str, Any] | str
"""An ArrayTask, the same as a mapping, or a text: then it is the name and the only argument."""


@dataclass(frozen=True, slots=True)
class NumberedTask:
    """A task with its number, which it keeps when it is run again by itself."""

    index: int
    name: str
    given: ArrayTask


def partition_tasks(context: _compat.Context, **shared: Any) -> list[ArrayTask]:
    """Give one task for each partition of this run, named by its key.

    For a backfill that runs in one run (``BackfillPolicy.single_run()``), or for a run of a single partition.

    Args:
        context: of the step.
        shared: other attributes of each ArrayTask.
    """
    return [ArrayTask(partition_key=key, **shared) for key in _compat.op_context(context).partition_keys]


def numbered(tasks: Iterable[Task], only: Collection[str | int] | None = None) -> tuple[NumberedTask, ...]:
    """Check the tasks, give each a name, and leave out those that aren't wanted."""
    if isinstance(tasks, str | Mapping):
        raise wrong(f"tasks is a list, one item for each task: write [{tasks!r}]")
    found = [NumberedTask(index, _name(index, task), task) for index, task in enumerate(map(_task, tasks))]
    if not found:
        raise wrong("tasks is empty; nothing was submitted")
    if len(found) > MOST_TASKS:
        raise wrong(f"tasks: {len(found):,} are more than the {MOST_TASKS:,} that one array may have; submit several")
    names: dict[str, int] = {}
    for task in found:
        if (other := names.setdefault(task.name, task.index)) != task.index:
            raise wrong(f"tasks: {other} and {task.index} have the same name {task.name!r}; give each its own name")
    return _wanted(found, only)


def _wanted(found: list[NumberedTask], only: Collection[str | int] | None) -> tuple[NumberedTask, ...]:
    if only is None:
        return tuple(found)
    if isinstance(only, str | int):
        raise wrong(f"only is a list of names or numbers of tasks: write [{only!r}]")
    by_name: dict[str | int, NumberedTask] = {task.name: task for task in found}
    by_name |= {task.index: task for task in found}
    missing = [item for item in only if item not in by_name]
    if missing:
        near = difflib.get_close_matches(str(missing[0]), [task.name for task in found], 1)
        raise wrong(f"only: there is no task {missing[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    wanted = {by_name[item].index for item in only}
    if not wanted:
        raise wrong("only names no task; leave it out to run all of them")
    return tuple(task for task in found if task.index in wanted)


def _task(given: object) -> ArrayTask:
    if isinstance(given, ArrayTask):
        task = given
    elif isinstance(given, str):
        task = ArrayTask(name=given, args=(given,))
    elif isinstance(given, Mapping):
        known = [one.name for one in fields(ArrayTask)]
        unknown = [name for name in given if name not in known]
        if unknown:
            near = difflib.get_close_matches(str(unknown[0]), known, 1)
            raise wrong(
                f"tasks: {unknown[0]!r} is nothing that a task has{f'; did you mean {near[0]!r}?' if near else ''} "
                f"({', '.join(known)})"
            )
        task = ArrayTask(**given)
    else:
        raise wrong(f"tasks: {given!r} is {type(given).__name__}; use ArrayTask(…), a mapping or a text")
    if isinstance(task.args, str) or not all(isinstance(word, str) for word in task.args):
        raise wrong(f"tasks: args={task.args!r} isn't a list of texts")
    environment(task.env, "tasks: env")
    return task


def _name(index: int, task: ArrayTask) -> str:
    name = task.name or task.partition_key or " ".join(task.args) or str(index)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 10]}… {index}"
