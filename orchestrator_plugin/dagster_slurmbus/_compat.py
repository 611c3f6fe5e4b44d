"""Every private import from Dagster, in one place: none of this is promised by Dagster. Tried against 1.13."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._config.field_utils import is_dagster_env_var
from dagster._core.definitions.resource_annotation import TreatAsResourceParam
from dagster._core.execution.context.invocation import BaseDirectExecutionContext
from dagster._core.pipes.reattach import record_external_launch
from dagster._core.utils import PYTHON_LOGGING_LEVELS_NAMES
from dagster._utils import interrupts
from dagster_shared.libraries import DagsterLibraryRegistry

__all__ = [
    "Context",
    "DagsterLibraryRegistry",
    "TreatAsResourceParam",
    "capture_interrupts",
    "ends_for_good",
    "files_directory",
    "has_retry_policy",
    "is_env_var",
    "is_invoked_directly",
    "is_log_level",
    "next_call",
    "op_context",
    "record_launch",
    "step_key",
]

Context = dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext
"""What a step's code gets from Dagster."""

_CALLS = "_slurmbus_calls"


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


def ends_for_good(context: dg.OpExecutionContext) -> bool:
    """Tell whether an interrupt means that somebody ended the run, so that nobody will come back for its jobs.

    A person's Terminate leaves the run CANCELING (CANCELED when forced); a redeploy or an eviction leaves it STARTED,
    and a later attempt finds the job by its handle, unless run and handle vanish with this process.
    """
    if is_invoked_directly(context) or context.instance.is_ephemeral:
        return True
    run = context.instance.get_run_by_id(context.run_id)
    return run is not None and run.status in {dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED}


def next_call(context: dg.OpExecutionContext) -> int:
    """Count the jobs of this attempt of the step: 0, 1, …; safe in threads."""
    owner: Any = context if is_invoked_directly(context) else context.get_step_execution_context()
    calls: Iterator[int] = vars(owner).setdefault(_CALLS, itertools.count())
    return next(calls)


def record_launch(context: dg.OpExecutionContext, *, client: str, key: str, extras: Mapping[str, Any]) -> None:
    """Write Dagster's launch handle into the event log, where a later attempt of the step finds it."""
    if not is_invoked_directly(context):
        record_external_launch(context, client_name=client, external_run_id=key, extras=extras)


def files_directory(context: dg.OpExecutionContext) -> Path:
    """Give the folder in which the Dagster instance keeps the files of this run."""
    return Path(context.instance.file_manager_directory(context.run_id))
