"""What came of the tasks of a job array, one by one and together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_slurmbus.array_figures import array_figures
from dagster_slurmbus.array_tasks import NumberedTask
from dagster_slurmbus.failures import describe, may_run_again
from dagster_slurmbus.outcomes import Metadata, figures, payload_end, prefixed, succeeded
from slurmbus_protocol.arrays import compact, slurm_id
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

MOST_TOLD = 10
"""Failed tasks that the failure's message tells one by one; its table has all of them."""
MOST_ROWS = 1000
"""Rows of a table: each is a part of one event in Dagster's log."""
_WORDS = 300


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """What became of one task.

    Attributes:
        index: its number.
        name: what it is called.
        partition_key: the one that it was given.
        record: its final record: state, exit code, node, times, Slurm's ids.
        metadata: its figures, like those of a single job, and what ``metrics=`` gave for it.
        own: the latter alone.
        outputs: the files that came back: name in its working directory -> path here.
        messages: the custom messages that its payload reported.
        results: the materializations and checks that its payload reported.
        last_words: the end of what it wrote to stderr, or the exception of its payload.
        reattached: it ran (or runs) as a job that an earlier attempt submitted.
        attempts: how many jobs it had, each asking for more memory or time than the one before.
    """

    index: int
    name: str
    partition_key: str | None
    record: Record
    metadata: Metadata = field(default_factory=dict)
    own: Metadata = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    messages: Sequence[Any] = ()
    results: Sequence[dg.MaterializeResult[Any] | dg.AssetCheckResult] = ()
    last_words: str = ""
    reattached: bool = False
    attempts: int = 1

    @property
    def state(self) -> str:
        """Slurm's word for its end."""
        return self.record.state.value

    @property
    def succeeded(self) -> bool:
        """Whether Slurm's state is COMPLETED and the payload's exit code 0."""
        return succeeded(self.record)

    @property
    def exit_code(self) -> int | None:
        """The payload's exit code."""
        return payload_end(self.record)[0]

    def describe(self) -> str:
        """Say in a sentence or two what happened and what to do next."""
        last = self.last_words.strip().splitlines()[-1:] or [""]
        attempts = f". It was the last of {self.attempts} attempts" if self.attempts > 1 else ""
        return f"[{self.name}] {describe(self.record, last[0][:_WORDS])}{attempts}"


class CompletedArray(dg.PipesClientCompletedInvocation):
    """What ``run_array()`` returns.

    Attributes:
        tasks: the outcome of each task, in the order in which they were given.
    """

    def __init__(self, session: dg.PipesSession, tasks: Sequence[TaskOutcome], metadata: Metadata) -> None:
        super().__init__(session, metadata=metadata)
        self.tasks = tuple(tasks)

    def __getitem__(self, name: str) -> TaskOutcome:
        """Give the outcome of the task with this name."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)

    def __iter__(self) -> Iterator[TaskOutcome]:
        """Go through the outcomes."""
        return iter(self.tasks)

    def __len__(self) -> int:
        """How many tasks there were."""
        return len(self.tasks)

    @property
    def failed(self) -> tuple[TaskOutcome, ...]:
        """The tasks that didn't succeed."""
        return tuple(task for task in self.tasks if not task.succeeded)

    @property
    def succeeded(self) -> tuple[TaskOutcome, ...]:
        """The tasks that did."""
        return tuple(task for task in self.tasks if task.succeeded)

    def get_custom_messages(self) -> Sequence[Any]:
        """Give the custom messages of all tasks, in their order."""
        return [message for task in self.tasks for message in task.messages]

    def get_results(
        self, *, implicit_materializations: bool = True
    ) -> Sequence[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        """Give one materialization for each asset and one result for each check, put together from all tasks.

        What the tasks of partitions reported stands with their partitions.
        """
        results = merged([(task, result) for task in self.tasks for result in task.results])
        known = {result.asset_key for result in results if isinstance(result, dg.MaterializeResult)}
        if implicit_materializations:
            missing = (key for key in self._session.context.selected_asset_keys if key not in known)
            results = [*results, *(dg.MaterializeResult(asset_key=key) for key in missing)]
        return [result._replace(metadata={**self.metadata, **plain_metadata(result.metadata)}) for result in results]


Result = dg.MaterializeResult[Any] | dg.AssetCheckResult


def merged(reported: Iterable[tuple[TaskOutcome, Result]]) -> list[Result]:
    """Put together what several tasks reported about the same asset or check: Dagster takes one of each in a step."""
    assets: dict[dg.AssetKey | None, list[tuple[TaskOutcome, dg.MaterializeResult[Any]]]] = {}
    checks: dict[tuple[dg.AssetKey | None, str | None], list[tuple[TaskOutcome, dg.AssetCheckResult]]] = {}
    for task, result in reported:
        if isinstance(result, dg.MaterializeResult):
            assets.setdefault(result.asset_key, []).append((task, result))
        else:
            checks.setdefault((result.asset_key, result.check_name), []).append((task, result))
    return [*map(_one_asset, assets.values()), *map(_one_check, checks.values())]


def _one_asset(reported: list[tuple[TaskOutcome, dg.MaterializeResult[Any]]]) -> dg.MaterializeResult[Any]:
    own = [(task, result) for task, result in reported if task.partition_key is None]
    versions = sorted(f"{task.name}={result.data_version.value}" for task, result in reported if result.data_version)
    version = None
    if len(reported) == 1:
        version = reported[0][1].data_version
    elif len(versions) == len(reported):
        version = dg.DataVersion(hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16])
    return dg.MaterializeResult(
        asset_key=reported[0][1].asset_key, metadata=_by_task([(t, r.metadata) for t, r in own]), data_version=version
    )


def _one_check(reported: list[tuple[TaskOutcome, dg.AssetCheckResult]]) -> dg.AssetCheckResult:
    first = reported[0][1]
    failed = [(task, result) for task, result in reported if not result.passed]
    severity = dg.AssetCheckSeverity.WARN
    if any(result.severity is dg.AssetCheckSeverity.ERROR for _, result in failed or reported):
        severity = dg.AssetCheckSeverity.ERROR
    metadata = _by_task([(task, result.metadata) for task, result in reported])
    if failed and len(reported) > 1:
        metadata["failed_tasks"] = dg.MetadataValue.json([task.name for task, _ in failed[:MOST_ROWS]])
    return dg.AssetCheckResult(
        asset_key=first.asset_key,
        check_name=first.check_name,
        passed=not failed,
        severity=severity,
        metadata=metadata,
    )


def plain_metadata(given: Mapping[str, Any] | None) -> Metadata:
    """Give what Pipes has turned into metadata values already."""
    return {name: value for name, value in (given or {}).items() if isinstance(value, dg.MetadataValue)}


def _by_task(reported: Sequence[tuple[TaskOutcome, Mapping[str, Any] | None]]) -> Metadata:
    """Give the metadata of one task as it is, and of several a mapping from the task's name to each value."""
    if len(reported) == 1:
        return plain_metadata(reported[0][1])
    values: dict[str, dict[str, Any]] = {}
    for task, metadata in reported[:MOST_ROWS]:
        for name, value in (metadata or {}).items():
            values.setdefault(name, {})[task.name] = value.value if isinstance(value, dg.MetadataValue) else value
    plain = {name: {task: _plain(value) for task, value in found.items()} for name, found in values.items()}
    return {name: dg.MetadataValue.json(found) for name, found in plain.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | dict | list | type(None)) else str(value)


_COLUMNS = [
    dg.TableColumn("task", "string"),
    dg.TableColumn("job", "string"),
    dg.TableColumn("state", "string"),
    dg.TableColumn("exit_code", "int"),
    dg.TableColumn("node", "string"),
    dg.TableColumn("elapsed_seconds", "float"),
    dg.TableColumn("peak_memory_mib", "float"),
    dg.TableColumn("attempts", "int"),
]
_FAILED_COLUMNS = [*_COLUMNS[:4], dg.TableColumn("why", "string"), dg.TableColumn("spool", "string")]


def array_metadata(tasks: Sequence[TaskOutcome]) -> Metadata:
    """Give the table of all tasks and what can be counted, so that Dagster plots it."""
    records = [task.record for task in tasks]
    ids = {record.job_id for record in records}
    found: dict[str, dg.MetadataValue[Any] | None] = {
        "tasks": dg.MetadataValue.table([_row(task) for task in tasks[:MOST_ROWS]], dg.TableSchema(_COLUMNS)),
        "tasks_in_all": dg.MetadataValue.int(len(tasks)),
        "tasks_failed": dg.MetadataValue.int(sum(not task.succeeded for task in tasks)),
        "tasks_reattached": dg.MetadataValue.int(sum(task.reattached for task in tasks)),
        "tasks_given_more": dg.MetadataValue.int(more) if (more := sum(task.attempts > 1 for task in tasks)) else None,
        "key": dg.MetadataValue.text(", ".join(dict.fromkeys(record.key for record in records))),
        "job_id": dg.MetadataValue.int(job_id) if len(ids) == 1 and (job_id := ids.pop()) is not None else None,
        "site": dg.MetadataValue.text(records[0].site),
        **array_figures(records),
    }
    return prefixed(found)


def own_metadata_of_tasks(tasks: Sequence[TaskOutcome]) -> Metadata:
    """Give what ``metrics=`` gave for the tasks; for tasks of partitions it stands with their partitions."""
    own = [(task, task.own) for task in tasks if task.own and task.partition_key is None]
    return _by_task(own) if own else {}


def _row(task: TaskOutcome) -> dg.TableRecord:
    used = figures(task.record)
    memory = used.peak_memory / 1024**2 if used.peak_memory else None
    return dg.TableRecord(
        {
            "task": task.name,
            "job": slurm_id(task.record),
            "state": task.state,
            "exit_code": task.exit_code if task.exit_code is not None else -1,
            "node": task.record.node_list or "",
            "elapsed_seconds": round(used.elapsed, 3) if used.elapsed is not None else -1.0,
            "peak_memory_mib": round(memory, 1) if memory is not None else -1.0,
            "attempts": task.attempts,
        }
    )


def array_failure(
    tasks: Sequence[TaskOutcome], numbered: Sequence[NumberedTask], *, cancelled_on_failure: bool = False
) -> dg.Failure:
    """Give the failure of an array: each failed task by itself, and how they are run again alone.

    Args:
        tasks: the outcomes.
        numbered: the tasks that were asked for.
        cancelled_on_failure: one failed task ends all others, so none is worth a retry when that one stays failed.
    """
    failed = [task for task in tasks if not task.succeeded]
    ended = [task for task in failed if task.record.state is not JobState.CANCELLED] or failed
    told = [task.describe() for task in ended[:MOST_TOLD]]
    more = len(failed) - len(told)
    rest = f"\nand {more} more: see the table of failed tasks" if more else ""
    text = f"{len(failed)} of {len(numbered)} tasks failed:\n" + "\n".join(told) + rest + _what_runs_again(failed)
    rows = [_failed_row(task) for task in failed[:MOST_ROWS]]
    metadata = {
        **array_metadata(tasks),
        **prefixed(
            {
                "failed_tasks": dg.MetadataValue.table(rows, dg.TableSchema(_FAILED_COLUMNS)),
                "failed_indexes": dg.MetadataValue.text(compact(task.index for task in failed)),
                "stderr_tail": dg.MetadataValue.text("\n\n".join(f"[{t.name}]\n{t.last_words}" for t in ended[:3])),
            }
        ),
    }
    worth_it = all if cancelled_on_failure else any
    return dg.Failure(text, metadata=metadata, allow_retries=worth_it(may_run_again(task.record) for task in failed))


def _what_runs_again(failed: Sequence[TaskOutcome]) -> str:
    stay = [task for task in failed if not may_run_again(task.record)]
    by_hand = f"by hand: run_array(…, only=[{_names(failed)}])"
    if not stay:
        return (
            f"\nA retry of this step, or a re-execution from failure, runs these tasks again and no others; {by_hand}"
        )
    states = ", ".join(dict.fromkeys(task.state for task in stay))
    others = " and runs the others again" if len(stay) < len(failed) else ""
    return (
        f"\nA RetryPolicy leaves {_names(stay)} failed ({states}){others}. A re-execution from failure runs all of "
        f"these tasks again and no others; {by_hand}"
    )


def _names(tasks: Sequence[TaskOutcome]) -> str:
    return ", ".join(repr(task.name) for task in tasks[:MOST_TOLD]) + (", …" if len(tasks) > MOST_TOLD else "")


def _failed_row(task: TaskOutcome) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "task": task.name,
            "job": slurm_id(task.record),
            "state": task.state,
            "exit_code": task.exit_code if task.exit_code is not None else -1,
            "why": task.describe().partition("] ")[2],
            "spool": task.record.spool or "",
        }
    )
