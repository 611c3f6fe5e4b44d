"""Every private import from Dagster, in one place: none of this is promised by Dagster. Tried against 1.13."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from dagster._config.field_utils import is_dagster_env_var
from dagster._core.definitions.resource_annotation import TreatAsResourceParam
from dagster._core.execution.context.invocation import BaseDirectExecutionContext
from dagster._core.pipes.context import build_external_execution_context_data
from dagster._core.pipes.reattach import (
    PIPES_LAUNCH_HANDLE_METADATA_KEY,
    PipesLaunchHandle,
    record_external_launch,
    record_external_reattach,
)
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    ASSET_RESUME_RETRY_TAG,
    MULTIDIMENSIONAL_PARTITION_PREFIX,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    STEP_SELECTION_TAG,
)
from dagster._core.utils import PYTHON_LOGGING_LEVELS_NAMES
from dagster._record import copy
from dagster._serdes import deserialize_value, serialize_value
from dagster._utils import interrupts
from dagster_pipes import PipesParams
from dagster_shared.libraries import DagsterLibraryRegistry

__all__ = [
    "Context",
    "DagsterLibraryRegistry",
    "FoundLaunch",
    "TreatAsResourceParam",
    "add_partition_metadata",
    "attempt",
    "capture_interrupts",
    "captured",
    "deployment_id",
    "end_of_run",
    "ends_for_good",
    "files_directory",
    "has_retry_policy",
    "instance_id",
    "is_env_var",
    "is_invoked_directly",
    "is_log_level",
    "latest_materialization",
    "launches_of_step",
    "may_be_from_failure",
    "op_context",
    "partition",
    "partition_of_asset",
    "pipes_partition",
    "pipes_session",
    "record_launch",
    "record_reattach",
    "related_runs",
    "run_tags",
    "selected_assets",
    "shown_path",
    "status_of_ended_run",
    "step_key",
    "times_logged",
    "unfinished_runs",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

Context = dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext
"""What a step's code gets from Dagster."""

_ATTEMPT = "_slurmbus_attempt"
_PARTITION_TAGS = frozenset({PARTITION_NAME_TAG, ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG})
_MOST_ANCESTORS = 64
"""A chain of retries that is longer is taken for a loop, as in ``dagster._core.pipes.reattach``."""


def capture_interrupts() -> AbstractContextManager[None]:
    """Keep interrupts away while something must be finished; without effect outside the main thread."""
    return interrupts.capture_interrupts()


def is_env_var(value: object) -> bool:
    """Tell whether this is a ``dg.EnvVar`` (of text or of a number) whose value isn't known yet."""
    return bool(is_dagster_env_var(value))


def is_log_level(name: object) -> bool:
    """Tell whether ``context.log.log`` takes this level."""
    return isinstance(name, str) and name.lower() in PYTHON_LOGGING_LEVELS_NAMES


def op_context(context: Context) -> dg.OpExecutionContext:
    """Give the context of the op behind an asset or a check: Dagster deprecates the same properties on the others."""
    return context if isinstance(context, dg.OpExecutionContext) else context.op_execution_context


def is_invoked_directly(context: dg.OpExecutionContext) -> bool:
    """Tell whether the asset's function was called by hand (``build_asset_context``), outside of any run."""
    return isinstance(context, BaseDirectExecutionContext)


def has_retry_policy(context: dg.OpExecutionContext) -> bool:
    """Tell whether Dagster would run this step again when it is interrupted."""
    return not is_invoked_directly(context) and context.get_step_execution_context().op_retry_policy is not None


def step_key(context: dg.OpExecutionContext) -> str:
    """Give the key of the step, or the function's name when it was called by hand."""
    if is_invoked_directly(context):
        return context.op_def.name
    return context.get_step_execution_context().step.key


def run_tags(context: Context) -> dict[str, str]:
    """Give the tags of the run; none when the function was called by hand."""
    op = op_context(context)
    return {} if is_invoked_directly(op) else dict(op.run_tags)


def assets_metadata(context: Context) -> dict[str, Mapping[str, Any]]:
    """Give the metadata that the assets of this step were defined with, by asset; nothing for an op without assets."""
    op = op_context(context)
    if is_invoked_directly(op) or not op.has_assets_def:
        return {}
    metadata = op.assets_def.metadata_by_key
    keys = {key.to_user_string(): key for key in op.selected_asset_keys}
    return {name: metadata.get(keys[name]) or {} for name in sorted(keys)}


def partition(context: dg.OpExecutionContext) -> dict[str, str]:
    """Give what names the partition, or the range of them, that this run is about; nothing when there is none.

    The Pipes context doesn't know of ranges.
    """
    if is_invoked_directly(context):
        return {}
    named = {
        name: value
        for name, value in context.run_tags.items()
        if name in _PARTITION_TAGS or name.startswith(MULTIDIMENSIONAL_PARTITION_PREFIX)
    }
    subset = getattr(context.run, "partitions_subset", None)
    return named | ({"partitions": serialize_value(subset)} if subset is not None else {})


def status_of_ended_run(context: dg.OpExecutionContext) -> str | None:
    """Give the status of this step's run when it is over: its worker was lost, and this process has outlived it."""
    if is_invoked_directly(context):
        return None
    run = context.instance.get_run_by_id(context.run_id)
    return run.status.value if run is not None and run.is_finished else None


def ends_for_good(context: dg.OpExecutionContext) -> bool:
    """Tell whether an interrupt means that somebody ended the run, so that nobody will come back for its jobs.

    A person's Terminate leaves the run CANCELING (CANCELED when forced); a redeploy or an eviction leaves it STARTED,
    and a later attempt finds the job by its handle, unless run and handle vanish with this process.
    """
    if is_invoked_directly(context) or context.instance.is_ephemeral:
        return True
    run = context.instance.get_run_by_id(context.run_id)
    return run is not None and run.status in {dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED}


class Attempt:
    """What the calls within one attempt of a step share; its methods are safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._calls = itertools.count()
        self._names: set[str] = set()
        self._kept: dict[str, Any] = {}

    def next_call(self) -> int:
        """Count the jobs of this attempt, from 0."""
        return next(self._calls)

    def is_new(self, name: str) -> bool:
        """Tell whether no call of this attempt has this name yet, and give it to the caller."""
        with self._lock:
            new = name not in self._names
            self._names.add(name)
            return new

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """Give what was made under this name, making it once."""
        with self._lock:
            if name not in self._kept:
                self._kept[name] = make()
            found: T = self._kept[name]
            return found


_attempts_lock = threading.Lock()


def attempt(context: dg.OpExecutionContext) -> Attempt:
    """Give what the calls of this attempt of the step share."""
    owner: Any = context if is_invoked_directly(context) else context.get_step_execution_context()
    with _attempts_lock:
        found: Attempt = vars(owner).setdefault(_ATTEMPT, Attempt())
    return found


def record_launch(context: dg.OpExecutionContext, *, client: str, key: str, extras: Mapping[str, Any]) -> None:
    """Write Dagster's launch handle into the event log, where a later attempt of the step finds it."""
    if not is_invoked_directly(context):
        record_external_launch(context, client_name=client, external_run_id=key, extras=extras)


def record_reattach(context: dg.OpExecutionContext, found: FoundLaunch, *, client: str) -> None:
    """Write into the event log that this attempt follows what an earlier one launched."""
    record_external_reattach(context, copy(found.handle, client_name=client))


@dataclass(frozen=True, slots=True)
class FoundLaunch:
    """A launch handle of an earlier attempt and the run that it was found in."""

    run_id: str
    handle: PipesLaunchHandle = field(repr=False)

    @property
    def client(self) -> str:
        """The name that ``record_launch`` was given."""
        return self.handle.client_name

    @property
    def key(self) -> str:
        """The job's key."""
        return self.handle.external_run_id

    @property
    def extras(self) -> Mapping[str, Any]:
        """What ``record_launch`` was given."""
        return self.handle.extras


def launches_of_step(context: dg.OpExecutionContext) -> list[FoundLaunch]:
    """Give what earlier attempts of this step launched: of each client name the newest, the newest first.

    Searched are this run and, as in ``dagster._core.pipes.reattach``, the runs that it is a from-failure retry of:
    "re-execute all" finds nothing.
    """
    if is_invoked_directly(context):
        return []
    step, instance = step_key(context), context.instance
    found: dict[str, FoundLaunch] = {}
    seen: set[str] = set()
    run: dg.DagsterRun | None = context.run
    while run is not None and run.run_id not in seen and len(seen) < _MOST_ANCESTORS:
        seen.add(run.run_id)
        for launch in _launches_in_run(instance, run.run_id, step):
            found.setdefault(launch.client, launch)
        run = _parent_to_go_on_with(instance, run, step)
    return list(found.values())


def _parent_to_go_on_with(instance: dg.DagsterInstance, run: dg.DagsterRun, step: str) -> dg.DagsterRun | None:
    parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    if parent is None or not may_be_from_failure(instance, run):
        return None
    if _is_tagged_from_failure(run):
        return parent
    succeeded = instance.all_logs(parent.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    return None if any(entry.step_key == step for entry in succeeded) else parent


def _launches_in_run(instance: dg.DagsterInstance, run_id: str, step: str) -> Iterator[FoundLaunch]:
    for entry in reversed(instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)):
        if entry.step_key != step or entry.dagster_event is None:
            continue
        value = entry.dagster_event.engine_event_data.metadata.get(PIPES_LAUNCH_HANDLE_METADATA_KEY)
        if not isinstance(value, dg.TextMetadataValue) or value.value is None:
            continue
        try:
            handle = deserialize_value(value.value, PipesLaunchHandle)
        except Exception:  # of another version of Dagster: its own lookup passes over it, too
            log.warning("run %s has a launch handle that can't be read", run_id, exc_info=True)
            continue
        if handle.step_key == step:
            yield FoundLaunch(run_id, handle)


def may_be_from_failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tell whether a run may go on where its parent failed, and so take up its parent's jobs.

    Dagster's UI and daemon tag such a run. ``execute_job`` with ``ReexecutionOptions.from_failure`` doesn't: its plan
    builds on what its parent has done, and has no tag either that says that a person has chosen the steps.
    """
    if _is_tagged_from_failure(run):
        return True
    plan = run.execution_plan_snapshot_id
    if run.parent_run_id is None or plan is None or STEP_SELECTION_TAG in run.tags:
        return False
    known = instance.get_execution_plan_snapshot(plan).initial_known_state
    return known is not None and known.parent_state is not None


def _is_tagged_from_failure(run: dg.DagsterRun) -> bool:
    return "true" in {run.tags.get(RESUME_RETRY_TAG), run.tags.get(ASSET_RESUME_RETRY_TAG)}


def related_runs(instance: dg.DagsterInstance, run_id: str, run: dg.DagsterRun | None) -> list[dg.DagsterRun]:
    """Give the re-executions of a run and of its relatives; ``run`` is None when it was deleted."""
    found = _runs_tagged(instance, PARENT_RUN_ID_TAG, run_id)
    roots = {one.root_run_id or one.run_id for one in [*found, *([run] if run else [])]} | {run_id}
    for root in roots:
        found += _runs_tagged(instance, ROOT_RUN_ID_TAG, root)
    return list({one.run_id: one for one in found}.values())


def unfinished_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Give all of them, however few or many."""
    return list(instance.get_runs(filters=dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)))


def _runs_tagged(instance: dg.DagsterInstance, tag: str, value: str) -> list[dg.DagsterRun]:
    return list(instance.get_runs(filters=dg.RunsFilter(tags={tag: value})))


def end_of_run(instance: dg.DagsterInstance, run_id: str) -> float:
    """Tell when a finished run ended."""
    record = instance.get_run_record_by_id(run_id)
    if record is None:  # deleted a moment ago
        return time.time()
    return record.end_time or record.update_timestamp.timestamp()


def deployment_id(context: dg.OpExecutionContext) -> str | None:
    """Give the id of the deployment whose run this is; None outside of any run that others could know of."""
    if is_invoked_directly(context) or context.instance.is_ephemeral:
        return None
    return instance_id(context.instance)


def instance_id(instance: dg.DagsterInstance) -> str | None:
    """Give the id that Dagster keeps with its run storage: two deployments never have the same."""
    storage: Any = instance.run_storage
    look_up = getattr(storage, "get_run_storage_id", None)  # of the storages in a database; Dagster's own all are
    return str(look_up()) if look_up is not None else None


def captured(context: dg.OpExecutionContext, stream: str, position: int, length: int) -> list[bytes]:
    """Give the bytes at this position of each log that Dagster captured of this step in this run."""
    if is_invoked_directly(context):
        return []
    manager, step = context.instance.compute_log_manager, step_key(context)
    kind = ComputeIOType.STDOUT if stream == "stdout" else ComputeIOType.STDERR
    found = []
    for entry in context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED):
        data = entry.get_dagster_event().logs_captured_data
        if step in (data.step_keys or ()):
            log_key = manager.build_log_key_for_run(context.run_id, data.file_key)
            piece, _ = manager.get_log_data_for_type(log_key, kind, position, length)
            found.append(piece or b"")
    return found


class _NoMessages(dg.PipesMessageReader):
    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        del handler
        yield {}

    @property
    def expected_writer_count(self) -> int:
        return 1

    def no_messages_debug_text(self) -> str:
        return ""


def pipes_session(
    context: dg.OpExecutionContext, injector: dg.PipesContextInjector, extras: Mapping[str, Any] | None
) -> dg.PipesSession:
    """Give a Pipes session whose messages others take, as ``dg.open_pipes_session`` makes one."""
    if context.has_assets_def:
        context.set_requires_typed_event_stream(
            error_message="return the results of run_array(): .get_results() or .get_materialize_result()"
        )
    data = build_external_execution_context_data(context, dict(extras or {}))
    with injector.inject_context(data):
        pass
    return dg.PipesSession(
        context_data=data,
        message_handler=dg.PipesMessageHandler(context, _NoMessages()),
        context_injector_params={},
        message_reader_params={},
        context=context,
    )


def pipes_partition(context: dg.OpExecutionContext, key: str) -> dict[str, Any]:
    """Give what Pipes' context says of a partition."""
    window = None
    if not is_invoked_directly(context):
        definition = context.get_step_execution_context().run_partitions_def
        if isinstance(definition, dg.TimeWindowPartitionsDefinition):
            found = definition.time_window_for_partition_key(key)
            window = {"start": found.start.isoformat(), "end": found.end.isoformat()}
    return {
        "partition_key": key,
        "partition_key_range": {"start": key, "end": key},
        "partition_time_window": window,
    }


def selected_assets(context: dg.OpExecutionContext) -> list[dg.AssetKey]:
    """Give the assets that this step materializes."""
    return sorted(context.selected_asset_keys) if context.has_assets_def else []


def partition_of_asset(context: dg.OpExecutionContext, asset: dg.AssetKey, partition: str | None) -> str | None:
    """Give the partition of an asset that something stands with: this one, else the only one that the run is about.

    None for an asset without partitions, and where the run is about several.
    """
    if is_invoked_directly(context) or context.assets_def.specs_by_key[asset].partitions_def is None:
        return None
    if partition is not None:
        return partition if partition in context.partition_keys else None
    keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else ()
    return keys[0] if len(keys) == 1 else None


def add_partition_metadata(
    context: dg.OpExecutionContext, metadata: Mapping[str, Any], asset: dg.AssetKey, partition: str
) -> None:
    """Let metadata stand with one partition of an asset that this step materializes; of others nothing is kept."""
    if is_invoked_directly(context) or not context.has_partition_key_range or partition not in context.partition_keys:
        return
    context.get_step_execution_context().add_asset_metadata(metadata=metadata, asset_key=asset, partition_key=partition)


def times_logged(context: dg.OpExecutionContext, text: str) -> int:
    """Count how often this run's log has this line of this step."""
    if is_invoked_directly(context):
        return 0
    entries = context.instance.all_logs(context.run_id)
    return sum(entry.step_key == step_key(context) and entry.user_message == text for entry in entries)


def latest_materialization(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> dg.AssetMaterialization | None:
    """Give what was materialized last: by this run, else of the partition that it is about, else at all.

    Right after the asset's own step the latest one is this run's, whoever else materializes the asset meanwhile.
    """
    op, instance = op_context(context), context.instance
    if not is_invoked_directly(op):
        own = instance.all_logs(op.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        for entry in reversed(own):
            materialization: dg.AssetMaterialization | None = entry.asset_materialization
            if materialization is not None and materialization.asset_key == key:
                return materialization
    named = None if is_invoked_directly(op) else op.run_tags.get(PARTITION_NAME_TAG)
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[named] if named is not None else None)
    records = instance.fetch_materializations(wanted, limit=1).records
    return records[0].asset_materialization if records else None


def files_directory(context: dg.OpExecutionContext) -> Path:
    """Give the folder in which the Dagster instance keeps the files of this run."""
    return Path(context.instance.file_manager_directory(context.run_id))


def shown_path(context: dg.OpExecutionContext, key: str) -> Path | None:
    """Give the file that keeps what this run shows of a job; None for a run that vanishes with this process."""
    if is_invoked_directly(context) or context.instance.is_ephemeral:
        return None
    return files_directory(context) / "slurmbus" / "shown" / key
