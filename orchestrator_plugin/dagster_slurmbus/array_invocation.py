"""One ``run_array()``: from what the user asked for to what became of each task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import dagster as dg
import msgspec

from dagster_slurmbus import _compat, array_launches, array_moves
from dagster_slurmbus.again import NO_POLICY, Ladder, changes
from dagster_slurmbus.array_launches import FoundArray, Place, has_failed
from dagster_slurmbus.array_results import (
    MOST_TOLD,
    CompletedArray,
    TaskOutcome,
    array_failure,
    array_metadata,
    own_metadata_of_tasks,
    plain_metadata,
)
from dagster_slurmbus.array_tasks import NumberedTask
from dagster_slurmbus.array_watching import ArrayWatching, WatchedTask
from dagster_slurmbus.failures import may_run_again
from dagster_slurmbus.files import LocalFile, local_files, without_duplicates
from dagster_slurmbus.invocation import (
    ACCOUNTING_PATIENCE,
    ACCOUNTING_WANTED,
    STREAM_LIMIT,
    Connect,
    Invocation,
    Request,
)
from dagster_slurmbus.metrics import metrics_metadata
from dagster_slurmbus.outcomes import failure_metadata, outputs_metadata, prefixed, success_metadata
from dagster_slurmbus.own_metrics import own_metadata
from dagster_slurmbus.provenance import CommitLookup, provenance_metadata, versions
from dagster_slurmbus.reattach import OnChangedRequest, request_digest
from dagster_slurmbus.values import environment, wrong
from dagster_slurmbus.watching import Conduct
from slurmbus.client import SiteClient
from slurmbus_protocol.errors import SlurmbusError, TooLarge
from slurmbus_protocol.messages import JobOptions, JobSpec, Record, TaskSpec
from slurmbus_protocol.subjects import new_ulid

OnTaskFailure = Literal["raise", "cancel", "continue"]
LEAST_STREAM_LIMIT = 64 * 1024
"""Bytes of each stream that a task shows in full even when it has a thousand siblings."""
MOST_TRACED = 500
"""Tasks of an array that get spans of their own: a collector's queue holds about 2,000."""
_DIGEST_LENGTH = 16

Submit = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayRequest:
    """What one ``run_array()`` asks for besides what a ``run()`` does, checked."""

    tasks: tuple[NumberedTask, ...]
    throttle: int | None = None
    on_task_failure: OnTaskFailure = "raise"

    def __post_init__(self) -> None:
        """Check it."""
        if self.on_task_failure not in {"raise", "cancel", "continue"}:
            raise wrong(f"on_task_failure={self.on_task_failure!r}: use 'raise', 'cancel' or 'continue'")
        if self.throttle is not None and self.throttle < 1:
            raise wrong(f"throttle={self.throttle!r}: at least one task must be able to run")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What all tasks share, what each has of its own and its hash, by name, and the hashes of what they share."""

    shared: JobSpec
    specs: Mapping[str, TaskSpec]
    digests: Mapping[str, str]
    parts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tasks that become one array."""

    key: str
    options: JobOptions
    before: dict[str, tuple[str, ...]]
    """How the earlier attempts of each task ended, by name."""


class ArrayInvocation(Invocation):
    """One ``run_array()`` on behalf of one step.

    Args:
        context: of the step.
        connect: gives a site's client; called when everything was checked.
        request: what all tasks share.
        conduct: how to behave meanwhile.
        array: the tasks.
    """

    def __init__(
        self, context: _compat.Context, connect: Connect, request: Request, conduct: Conduct, array: ArrayRequest
    ) -> None:
        if request.stream_limit == STREAM_LIMIT:
            limit = max(LEAST_STREAM_LIMIT, STREAM_LIMIT // len(array.tasks))
            request = replace(request, stream_limit=limit)
        super().__init__(context, connect, request, conduct)
        self._array = array
        self._watched: ArrayWatching | None = None
        self._places: dict[str, Place] = {}
        """Where each task is, also those that this call leaves out."""
        self._options: dict[str, JobOptions] = {}
        """What arrays with more memory or time ask for, by key."""
        self._task_files = {task.index: tuple(local_files(task.given.files, "tasks: files")) for task in array.tasks}
        for own in self._task_files.values():
            without_duplicates(own)

    def run_array(self) -> CompletedArray:
        """Submit the tasks, or find those of an earlier attempt; follow them to their ends, and give their results.

        Raises:
            dagster.Failure: a task failed, or something between here and the agent did.
        """
        return self._guarded(self._run_array)

    def _run_array(self, lookup: CommitLookup) -> CompletedArray:
        session = _compat.pipes_session(self._context, self._injector, self._request.extras)
        client = self._connect(None)
        self._call = array_launches.launch_client(self._context, self._request.reattach_key)
        self._pack_environment(client)
        shared = self._spec(self._hashed())
        specs = {task.name: self._task_spec(task) for task in self._array.tasks}
        parts = self._parts(msgspec.structs.replace(shared, array_throttle=None))
        digests = {name: self._digest(spec) for name, spec in specs.items()}
        found = array_launches.find(self._context, self._call, parts)
        asked = _Asked(shared, specs, digests, parts)
        client, watching, submit = self._begin(client, found, asked)
        outcomes = self._outcomes(client, self._follow(client, watching, asked, submit))
        for task in outcomes[:MOST_TRACED]:
            self._trace.ended(task.record)
        metadata = {
            **array_metadata(outcomes),
            **provenance_metadata(list(shared.files), lookup.result(), versions()),
            **own_metadata_of_tasks(outcomes),
        }
        self._report_partitions(outcomes)
        if self._array.on_task_failure != "continue" and any(not task.succeeded for task in outcomes):
            raise array_failure(outcomes, self._array.tasks, cancelled_on_failure=self._cancels)
        return CompletedArray(session, outcomes, metadata)

    @property
    def _cancels(self) -> bool:
        return self._array.on_task_failure == "cancel"

    def _watch_tasks(self, client: SiteClient) -> ArrayWatching:
        self._watched = ArrayWatching(
            self._context,
            client,
            self._conduct,
            cancel_on_failure=self._cancels,
            goes_on=lambda place, record: self._more(place, record) is not None,
        )
        return self._watched

    # ------------------------------------------------------------------ what is asked for

    def _task_spec(self, task: NumberedTask) -> TaskSpec:
        given = task.given
        files = tuple(file.ref() for file in self._task_files[task.index])
        context = self._task_context(task)
        return TaskSpec(
            index=task.index,
            name=task.name,
            args=tuple(given.args),
            env=environment(given.env, "tasks: env"),
            files=files,
            pipes_context=json.dumps(context).encode() if context else None,
        )

    def _digest(self, spec: TaskSpec) -> str:
        """Hash what a task asks for; its number isn't part of that, and changes with the tasks in front of it."""
        return request_digest(msgspec.structs.replace(spec, index=0), self._context.run_id)[:_DIGEST_LENGTH]

    def _task_context(self, task: NumberedTask) -> dict[str, Any]:
        """Give what the task's Pipes context has of its own."""
        given = task.given
        changed: dict[str, Any] = {}
        if given.extras:
            changed["extras"] = {**(self._request.extras or {}), **given.extras}
        if given.partition_key is not None:
            changed |= _compat.pipes_partition(self._context, given.partition_key)
        try:
            json.dumps(changed)
        except (TypeError, ValueError) as error:
            raise wrong(f"tasks: the extras of {task.name!r} must be JSON: {error}") from error
        return changed

    # ------------------------------------------------------------------ earlier attempts

    def _begin(
        self, here: SiteClient, found: FoundArray | None, asked: _Asked
    ) -> tuple[SiteClient, ArrayWatching, Submit | None]:
        """Give the site where the tasks go on or begin, what watches them there, and what submits what is needed."""
        if found is not None and found.site != here.site:
            there = self._followed_at(found, here, asked)
            if there is not None:
                return there, self._reattach_there(there, found), None
            found = None
        watching = self._watch_tasks(here)
        return here, watching, self._prepare(here, watching, found, asked)

    def _followed_at(self, found: FoundArray, here: SiteClient, asked: _Asked) -> SiteClient | None:
        """Give the other site whose tasks are followed; None when they are ended, or lost sight of, to begin here."""
        log, on_changed = self._context.log, self._conduct.on_changed_request
        try:
            there = self._connect(found.site)
            records = {key: there.task_records(key) for key in found.keys}
        except SlurmbusError as error:
            if on_changed is not OnChangedRequest.RESUBMIT:
                raise
            log.warning(
                "an earlier attempt's array %s went to site %s, which can't be asked from here (%s). It isn't followed "
                "any more; end it with 'slurmbus cancel --site %s'",
                ", ".join(found.keys),
                found.site,
                error,
                found.site,
            )
            return None
        if array_moves.stays(asked.digests, found, records, site=here.site, on_changed=on_changed):
            log.warning(
                "an earlier attempt's tasks went to site %s: they are followed there, and none is submitted on %s",
                found.site,
                here.site,
            )
            return there
        left = array_moves.unfinished(found, records)
        log.warning(
            "the request has changed (site): %d tasks on site %s are cancelled, and all are submitted on %s",
            len(left),
            found.site,
            here.site,
        )
        if left:
            self._watch_tasks(there).end(left, self._superseded)
        return None

    def _reattach_there(self, there: SiteClient, found: FoundArray) -> ArrayWatching:
        # More memory or time would be a new array, of a request that is another site's.
        self._request = replace(self._request, again=NO_POLICY)
        watching = self._watch_tasks(there)
        for task in self._array.tasks:
            watching.add(task, found.tasks[task.name], reattached=True)
        _compat.record_reattach(self._context, found.launch, client=self._call)
        return watching

    @property
    def _superseded(self) -> str:
        return f"Dagster run {self._context.run_id} asks for another job instead"

    def _prepare(
        self, client: SiteClient, watching: ArrayWatching, found: FoundArray | None, asked: _Asked
    ) -> Submit | None:
        """Decide what becomes of each task, write down where each is, and give what submits those that aren't yet."""
        records = {key: client.task_records(key) for key in found.keys} if found is not None else {}
        same = found is not None and dict(found.parts) == dict(asked.parts)
        if found is not None and not same:
            found = found.outdated()
        retried = found is not None and (found.launch.run_id == self._context.run_id or self._context.retry_number > 0)

        def stays(place: Place, record: Record) -> bool:
            """Tell whether a failed task is left to its policy, or to a person: a RetryPolicy asks for the same."""
            return self._more(place, record) is not None or (retried and not may_run_again(record))

        decided = array_launches.plan(
            asked.digests,
            found,
            records,
            numbers={task.name: task.index for task in self._array.tasks},
            same=same,
            on_changed=self._conduct.on_changed_request,
            stays=stays,
        )
        if found is not None:
            self._tell(decided, found)
            self._places, self._options = dict(found.tasks), dict(found.options)
        if decided.end:
            watching.end(decided.end.values(), self._superseded)
        new: list[_Batch] = []
        for name in decided.submit:
            before = self._places.get(name)
            alike = same and before is not None and before.digest == asked.digests[name]
            kept = before if alike and before is not None else Place("", 0, "")
            self._add(new, name, self._options.get(kept.key, self._request.options), kept.before)
        again = [name for name, place in decided.follow.items() if place.key == decided.repeat]
        self._places |= decided.follow
        self._place(new, asked)
        for task in self._array.tasks:
            watching.add(task, self._places[task.name], reattached=task.name in decided.follow)
        if not new and not again:
            if found is not None:
                _compat.record_reattach(self._context, found.launch, client=self._call)
            return None
        if again and decided.repeat is not None:
            options = self._options.get(decided.repeat, self._request.options)
            new.append(_Batch(decided.repeat, options, dict.fromkeys(again, ())))
        return self._launch(client, new, asked)

    def _tell(self, decided: array_launches.Plan, found: FoundArray) -> None:
        log = self._context.log
        whose = "this run" if found.launch.run_id == self._context.run_id else f"run {found.launch.run_id}"
        going_on = len(decided.follow) - len(decided.failed)
        if going_on:
            log.info("going on with %d tasks that an earlier attempt in %s submitted", going_on, whose)
        if decided.failed:
            log.warning("not running %d failed tasks again as they are: %s", len(decided.failed), _told(decided.failed))
        if decided.submit:
            log.info("running %d tasks again: %s", len(decided.submit), _told(decided.submit))
        if decided.changed:
            log.warning("%d tasks ask for something else than before", len(decided.changed))

    # ------------------------------------------------------------------ again, with more memory or time

    def _more(self, place: Place, record: Record) -> JobOptions | None:
        """Give what a task that has failed asks for next; None when it isn't run again."""
        return self._ladder_of(place).more(record) if has_failed(record) and record.cancel is None else None

    def _ladder_of(self, place: Place) -> Ladder:
        return Ladder(self._request.again, [{"state": state} for state in place.before])

    def _follow(
        self, client: SiteClient, watching: ArrayWatching, asked: _Asked, submit: Submit | None
    ) -> list[WatchedTask]:
        """Follow all tasks to their ends; those that lacked memory or time go on together, as arrays that have more."""
        ended: dict[str, WatchedTask] = {}
        while True:
            watching.follow(submit)
            just_ended = {watched.task.name: watched for watched in watching.tasks.values()}
            self._add_accounting(client, list(just_ended.values()))
            ended |= just_ended
            batches = self._climbing(just_ended)
            if not batches:
                return list(ended.values())
            self._place(batches, asked)
            watching = self._watch_tasks(client)
            for batch in batches:
                for name in batch.before:
                    watching.add(ended[name].task, self._places[name], reattached=False)
            submit = self._launch(client, batches, asked)

    def _climbing(self, ended: Mapping[str, WatchedTask]) -> list[_Batch]:
        """Give the arrays of those that are run again; none when one that has failed for good ends its siblings."""
        failed = {
            name: (watched, record, self._more(watched.place, record))
            for name, watched in ended.items()
            if (record := watched.record) is not None and has_failed(record)
        }
        if self._cancels and any(options is None for _, _, options in failed.values()):
            return []
        batches: list[_Batch] = []
        for name, (watched, record, options) in failed.items():
            if options is not None:
                self._trace.ended(record)
                self._add(batches, name, options, (*watched.place.before, record.state.value))
        for batch in batches:
            _, record, _ = failed[next(iter(batch.before))]
            self._context.log.warning(
                "%d tasks had too little memory or time. Running them again with %s: %s",
                len(batch.before),
                changes(record.options, batch.options),
                _told(list(batch.before)),
            )
        return batches

    def _add_accounting(self, client: SiteClient, ended: Sequence[WatchedTask]) -> None:
        """Wait a little, for all together, for accounting's figures of those whose runners' own aren't enough."""
        wanting = [
            task
            for task in ended
            if task.record is not None and self._wants_accounting(task.record, self._ladder_of(task.place))
        ]
        until = time.monotonic() + (ACCOUNTING_WANTED if self._request.wait_for_accounting else ACCOUNTING_PATIENCE)
        try:
            for task in wanting:
                if (left := until - time.monotonic()) <= 0:
                    break
                client.wait_for_accounting(task.place.key, left, task.place.index)
            records = {key: client.task_records(key) for key in dict.fromkeys(task.place.key for task in wanting)}
        except SlurmbusError as error:  # the tasks have ended, whatever becomes of their figures
            self._context.log.warning("accounting's figures of %d tasks can't be had: %s", len(wanting), error)
            return
        for task in wanting:
            task.record = records[task.place.key].get(task.place.index, task.record)

    # ------------------------------------------------------------------ new tasks

    @staticmethod
    def _add(batches: list[_Batch], name: str, options: JobOptions, before: tuple[str, ...]) -> None:
        """Put a task to those that ask for the same: the tasks of an array share what they ask Slurm for."""
        for batch in batches:
            if batch.options == options:
                batch.before[name] = before
                return
        batches.append(_Batch(new_ulid(), options, {name: before}))

    def _place(self, batches: Sequence[_Batch], asked: _Asked) -> None:
        """Note where the tasks of these arrays are from now on."""
        indexes = {task.name: task.index for task in self._array.tasks}
        for batch in batches:
            for name, before in batch.before.items():
                self._places[name] = Place(batch.key, indexes[name], asked.digests[name], before)
            if batch.options != self._request.options:
                self._options[batch.key] = batch.options

    def _launch(self, client: SiteClient, batches: Sequence[_Batch], asked: _Asked) -> Submit:
        """Write down where all tasks are, and give what submits these."""
        self._check_run()
        launch = array_launches.extras(client.site, asked.parts, self._places, self._options)
        _compat.record_launch(self._context, client=self._call, key=batches[0].key, extras=launch)

        def submit() -> None:
            for batch in batches:
                shared = msgspec.structs.replace(asked.shared, options=batch.options)
                self._submit_array(client, batch.key, [asked.specs[name] for name in batch.before], shared)

        return submit

    def _submit_array(self, client: SiteClient, key: str, tasks: Sequence[TaskSpec], shared: JobSpec) -> None:
        self._uploaded(client)
        self._ship_environment(client)
        wanted = {task.index for task in tasks}
        for index, files in self._task_files.items():
            if index in wanted:
                self._upload(client, files)
        spec = msgspec.structs.replace(
            shared,
            pipes_module=self._pipes_module(client),
            labels=self._labels(),
            trace=self._trace.context(self._call),
            tasks=tuple(sorted(tasks, key=lambda task: task.index)),
            array_throttle=self._array.throttle,
        )
        try:
            client.submit(spec, key=key, secret_env=self._request.secret_env)
        except TooLarge as error:
            raise wrong(
                f"the request for {len(tasks)} tasks is too large ({error.message}): give the tasks less args, env and "
                "extras of their own (name a file instead), or run several arrays"
            ) from error

    @staticmethod
    def _upload(client: SiteClient, files: Sequence[LocalFile]) -> None:
        for file in files:
            client.upload(file.path, file.target)

    # ------------------------------------------------------------------ what came of it

    def _outcomes(self, client: SiteClient, ended: Sequence[WatchedTask]) -> list[TaskOutcome]:
        problems: list[str] = []
        outcomes = [self._outcome(client, task, problems.append) for task in ended]
        if problems:  # perhaps the same one a thousand times
            more = f" ({len(problems) - 1} more tasks have such a problem)" if problems[1:] else ""
            self._context.log.warning("%s%s", problems[0], more)
        return outcomes

    def _outcome(self, client: SiteClient, watched: WatchedTask, warn: Callable[[str], None]) -> TaskOutcome:
        record = watched.record
        if record is None:
            raise RuntimeError(f"following task {watched.place.index} of {watched.place.key} ended without its record")
        outcome = TaskOutcome(
            index=watched.task.index,
            name=watched.task.name,
            partition_key=watched.task.given.partition_key,
            record=record,
            messages=tuple(watched.handler.get_custom_messages()),
            results=tuple(watched.handler.get_reported_results()),
            last_words=watched.last_words,
            reattached=watched.reattached,
            attempts=len(watched.place.before) + 1,
        )
        metadata = metrics_metadata(record)
        if not outcome.succeeded:
            return replace(outcome, metadata=metadata | failure_metadata(record, watched.last_words, None))
        outputs = self._fetch_outputs(client, record, outcome.name)
        metadata |= {**success_metadata(record), **outputs_metadata(outputs)}
        own = own_metadata(
            self._request.metrics, record, outputs, metadata, lambda text: warn(f"[{outcome.name}] {text}")
        )
        return replace(outcome, metadata=metadata | own, own=own, outputs=outputs)

    def _report_partitions(self, outcomes: Sequence[TaskOutcome]) -> None:
        """Let what a partition's task reported stand with that partition."""
        for task in outcomes:
            if task.partition_key is None or not task.succeeded:
                continue
            for key in _compat.selected_assets(self._context):
                reported = [
                    r for r in task.results if isinstance(r, dg.MaterializeResult) and r.asset_key in {key, None}
                ]
                metadata = {**prefixed({"task": dg.MetadataValue.text(task.name)}), **task.metadata}
                for result in reported:
                    metadata |= plain_metadata(result.metadata)
                _compat.add_partition_metadata(self._context, metadata, key, task.partition_key)

    def _whereabouts(self) -> Any:
        watched = self._watched
        if watched is None or not watched.tasks:
            return {}
        keys = ", ".join(dict.fromkeys(key for key, _ in watched.tasks))
        return prefixed({"key": dg.MetadataValue.text(keys), "site": dg.MetadataValue.text(watched.client.site)})


def _told(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_TOLD]) + (", …" if len(names) > MOST_TOLD else "")
