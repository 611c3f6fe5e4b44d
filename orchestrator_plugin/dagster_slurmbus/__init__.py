"""Dagster assets as Slurm jobs, over a message bus instead of SSH."""

from importlib.metadata import version

from dagster_slurmbus._compat import DagsterLibraryRegistry
from dagster_slurmbus.again import MoreMemory, MoreTime
from dagster_slurmbus.agents import slurmbus_agent_assets, slurmbus_agent_checks, slurmbus_agents_sensor
from dagster_slurmbus.array_results import CompletedArray, TaskOutcome
from dagster_slurmbus.array_tasks import ArrayTask, partition_tasks
from dagster_slurmbus.bus import BusResource
from dagster_slurmbus.checks import cpu_efficiency_check, memory_headroom_check
from dagster_slurmbus.environments import EnvironmentConfig
from dagster_slurmbus.launchers import (
    BashLauncher,
    ComputeLauncher,
    MpiLauncher,
    RayLauncher,
    SparkLauncher,
    TorchrunLauncher,
)
from dagster_slurmbus.outcomes import CompletedJob
from dagster_slurmbus.own_metrics import FinishedJob
from dagster_slurmbus.pipes import PipesSlurmClient
from dagster_slurmbus.queue_config import SlurmOptions, SlurmQueueConfig
from dagster_slurmbus.reattach import OnChangedRequest
from dagster_slurmbus.reconcile import slurmbus_reconcile_sensor
from dagster_slurmbus.resources import ComputeResource, ExecutionMode, SlurmResource
from dagster_slurmbus.run_config import SlurmRunConfig
from dagster_slurmbus.sites import SlurmSite
from slurmbus.environments import (
    ApptainerImage,
    CondaPack,
    InstalledEnvironment,
    Modules,
    PackedEnvironment,
    PixiPack,
    Requirements,
    SiteFolder,
    UvLock,
)

__version__ = version("dagster-slurmbus")

__all__ = [
    "ApptainerImage",
    "ArrayTask",
    "BashLauncher",
    "BusResource",
    "CompletedArray",
    "CompletedJob",
    "ComputeLauncher",
    "ComputeResource",
    "CondaPack",
    "EnvironmentConfig",
    "ExecutionMode",
    "FinishedJob",
    "InstalledEnvironment",
    "Modules",
    "MoreMemory",
    "MoreTime",
    "MpiLauncher",
    "OnChangedRequest",
    "PackedEnvironment",
    "PipesSlurmClient",
    "PixiPack",
    "RayLauncher",
    "Requirements",
    "SiteFolder",
    "SlurmOptions",
    "SlurmQueueConfig",
    "SlurmResource",
    "SlurmRunConfig",
    "SlurmSite",
    "SparkLauncher",
    "TaskOutcome",
    "TorchrunLauncher",
    "UvLock",
    "cpu_efficiency_check",
    "memory_headroom_check",
    "partition_tasks",
    "slurmbus_agent_assets",
    "slurmbus_agent_checks",
    "slurmbus_agents_sensor",
    "slurmbus_reconcile_sensor",
]

DagsterLibraryRegistry.register("dagster-slurmbus", __version__, is_dagster_package=False)
