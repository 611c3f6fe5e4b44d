"""One ``run_array()``: from what the user asked for to what became of each task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import dagster as dg
import msgspec

from dagster_slurmbus import _compat, array_launches
from dagster_slurmbus.array_launches import FoundArray, Place
from dagster_slurmbus.array_results import (
    MOST_TOLD,
    CompletedArray,
    TaskOutcome,
    array_failure,
    array_metadata,
    plain_metadata,
)
from dagster_slurmbus.array_tasks import NumberedTask
from dagster_slurmbus.array_watching import ArrayWatching, WatchedTask
from dagster_slurmbus.files import LocalFile, local_files, without_duplicates
from dagster_slurmbus.invocation import STREAM_LIMIT, Connect, Invocation, Request
from dagster_slurmbus.outcomes import prefixed, success_metadata
from dagster_slurmbus.provenance import CommitLookup, provenance_metadata, versions
from dagster_slurmbus.reattach import OnChangedRequest, request_digest
from dagster_slurmbus.values import environment, wrong
from dagster_slurmbus.watching import Conduct
from slurmbus.client import SiteClient
from slurmbus_protocol.errors import TooLarge
from slurmbus_protocol.messages import JobSpec, Record, TaskSpec
from slurmbus_protocol.subjects import new_ulid

OnTaskFailure = Literal["raise", "cancel", "continue"]
LEAST_STREAM_LIMIT = 64 * 1024
"""Bytes of each stream that a task shows in full even when it has a thousand siblings."""
MOST_TRACED = 500
"""Tasks of an array that get spans of their own: a collector's queue holds about 2,000."""
_DIGEST_LENGTH = 16


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
        digests = {name: request_digest(spec, self._context.run_id)[:_DIGEST_LENGTH] for name, spec in specs.items()}
        found = array_launches.find(self._context, self._call, parts)
        client = client if found is None or found.site == client.site else self._connect_there(found, client)
        watching = self._watched = ArrayWatching(
            self._context, client, self._conduct, cancel_on_failure=self._array.on_task_failure == "cancel"
        )
        submit = self._prepare(client, watching, found, parts, digests, specs, shared)
        watching.follow(submit)
        outcomes = self._outcomes(client, watching)
        for task in outcomes[:MOST_TRACED]:
            self._trace.ended(task.record)
        metadata = {
            **array_metadata(outcomes),
            **provenance_metadata(list(shared.files), lookup.result(), versions()),
        }
        self._report_partitions(outcomes)
        if self._array.on_task_failure != "continue" and any(not task.succeeded for task in outcomes):
            raise array_failure(outcomes, self._array.tasks)
        return CompletedArray(session, outcomes, metadata)

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

    def _connect_there(self, found: FoundArray, client: SiteClient) -> SiteClient:
        if self._conduct.on_changed_request is OnChangedRequest.RESUBMIT:
            self._context.log.warning(
                "an earlier attempt's tasks went to site %s, and they are gone on with there, not on %s",
                found.site,
                client.site,
            )
        return self._connect(found.site)

    def _prepare(
        self,
        client: SiteClient,
        watching: ArrayWatching,
        found: FoundArray | None,
        parts: Mapping[str, str],
        digests: Mapping[str, str],
        specs: Mapping[str, TaskSpec],
        shared: JobSpec,
    ) -> Any:
        """Decide what becomes of each task, write down where each is, and give what submits those that aren't yet."""
        keys = dict.fromkeys(place.key for place in found.tasks.values()) if found is not None else {}
        records: dict[str, dict[int, Record]] = {key: client.task_records(key) for key in keys}
        same = found is not None and dict(found.parts) == dict(parts)
        decided = array_launches.plan(digests, found, records, same=same, on_changed=self._conduct.on_changed_request)
        if found is not None:
            self._tell(decided, found)
        if decided.end:
            watching.end(decided.end.values(), f"Dagster run {self._context.run_id} asks for another job instead")
        new = new_ulid()
        tasks = {task.name: task for task in self._array.tasks}
        places = dict(decided.follow)
        places |= {name: Place(new, tasks[name].index, digests[name]) for name in decided.submit}
        for name in specs:
            place = places[name]
            watching.add(tasks[name], place, reattached=name in decided.follow)
        again = [name for name, place in decided.follow.items() if place.key == decided.repeat]
        if not decided.submit and not again:
            if found is not None:
                _compat.record_reattach(self._context, found.launch, client=self._call)
            return None
        self._check_run()
        key, names = (new, list(decided.submit)) if decided.submit else (decided.repeat or new, again)
        known = {**(found.tasks if found is not None else {}), **places}
        launch = array_launches.extras(client.site, parts, known)
        _compat.record_launch(self._context, client=self._call, key=key, extras=launch)
        requests = [(key, names)]
        if decided.submit and again and decided.repeat is not None:
            requests.append((decided.repeat, again))

        def submit() -> None:
            for one, wanted in requests:
                self._submit_array(client, one, [specs[name] for name in wanted], shared)

        return submit

    def _tell(self, decided: array_launches.Plan, found: FoundArray) -> None:
        log = self._context.log
        whose = "this run" if found.launch.run_id == self._context.run_id else f"run {found.launch.run_id}"
        if decided.follow:
            log.info("going on with %d tasks that an earlier attempt in %s submitted", len(decided.follow), whose)
        if decided.submit:
            names = ", ".join(decided.submit[:MOST_TOLD]) + (", …" if len(decided.submit) > MOST_TOLD else "")
            log.info("running %d tasks again: %s", len(decided.submit), names)
        if decided.changed:
            log.warning("%d tasks ask for something else than before", len(decided.changed))

    # ------------------------------------------------------------------ new tasks

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

    def _outcomes(self, client: SiteClient, watching: ArrayWatching) -> list[TaskOutcome]:
        return [self._outcome(client, task) for task in watching.tasks.values()]

    def _outcome(self, client: SiteClient, watched: WatchedTask) -> TaskOutcome:
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
        )
        if not outcome.succeeded:
            return outcome
        return replace(
            outcome, metadata=success_metadata(record), outputs=self._fetch_outputs(client, record, watched.task.name)
        )

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
