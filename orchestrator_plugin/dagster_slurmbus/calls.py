"""The arguments that ``run_array()`` has in common with ``run()``, where they are explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from dagster_slurmbus.again import MoreMemory, MoreTime
from dagster_slurmbus.files import Files, StrPath
from dagster_slurmbus.launchers import ComputeLauncher
from dagster_slurmbus.own_metrics import OwnMetrics
from dagster_slurmbus.queue_config import Options
from dagster_slurmbus.run_config import SlurmRunConfig
from slurmbus.environments import AnyEnvironment
from slurmbus.secret_env import SecretEnv


class _Call(TypedDict, total=False):
    cwd: str | None
    extras: Mapping[str, Any] | None
    outputs: Sequence[str]
    outputs_dir: StrPath | None
    outputs_limit: int
    stream_limit: int
    options: Options | None
    extra_slurm_opts: Mapping[str, Any] | None
    run_config: SlurmRunConfig | None
    environment: AnyEnvironment | None
    ship_pipes_module: bool
    reattach_key: str | None
    on_out_of_memory: MoreMemory | None
    on_timeout: MoreTime | None
    metrics: OwnMetrics | None
    secret_env: SecretEnv | None


class PayloadCall(_Call, total=False):
    """Of ``ComputeResource``."""

    remote_payload_path: str | None
    payload_args: Sequence[str]
    extra_files: Files | None
    extra_env: Mapping[str, str] | None
    resource_requirements: Mapping[str, Any] | None
    launcher: ComputeLauncher | None


class CommandCall(_Call, total=False):
    """Of ``PipesSlurmClient``."""

    env: Mapping[str, str] | None
    files: Files | None
