"""How a payload is started: typed plans that launchers make and that the runner carries out inside the job.

Every plan has ``argv`` (the payload and its arguments) and ``preamble``; what a launcher adds are fields of its own. A
plan that is added here gets a module ``launch_<tag>.py`` in the runner.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Argv = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all plans."""

    argv: Argv
    preamble: str = ""
    """Lines that bash runs first, under ``set -euo pipefail``, e.g. ``module load …``."""


class CommandPlan(Plan, frozen=True, kw_only=True, omit_defaults=True, tag="command"):
    """Run one command; the runner carries this out without a shell, unless there is a preamble."""


class RayPlan(Plan, frozen=True, kw_only=True, omit_defaults=True, tag="ray"):
    """Run the payload attached to a Ray cluster over all nodes of the job, or to one that is there already."""

    python: str = "python3"
    """The Python on the site that has Ray."""
    ray_address: str | None = None
    """``host:port`` of a cluster that is there already; then none is started."""
    num_cpus_per_node: Count | None = None
    """None takes what Slurm gave."""
    num_gpus_per_node: Count | None = None
    head_cpus: Count | None = None
    """CPUs that the head's node offers; 0 keeps tasks off it."""
    memory_per_node: Count | None = None
    """Bytes."""
    object_store_memory: Count | None = None
    """Bytes on each node."""
    resources_per_node: dict[str, float] = {}
    interface: str | None = None
    """The network between the nodes, e.g. ``ib0``."""
    temp_dir: str | None = None
    """A folder on every node's own disk."""
    dashboard: bool = True
    start_timeout: Seconds = 120.0
    pre_start_commands: tuple[str, ...] = ()
    """Lines that bash runs on every node before Ray starts there."""


class MpiPlan(Plan, frozen=True, kw_only=True, omit_defaults=True, tag="mpi"):
    """Run the payload as the ranks of an MPI program."""

    how: Literal["srun", "mpirun"] = "srun"
    mpi: str | None = None
    """srun's ``--mpi``; None takes pmix or pmi2, whichever srun offers first."""
    mpirun: str = "mpirun"
    """The command, where ``how`` is mpirun and in a job without Slurm."""
    ranks: Count | None = None
    """None takes the job's tasks."""
    ranks_per_node: Count | None = None
    mpi4py: bool = False
    """``argv`` is Python with mpi4py: an exception that nobody catches ends all ranks."""
    prefix: bool = False
    """Begin each line of the output with its rank."""
    interface: str | None = None
    arguments: tuple[str, ...] = ()
    """Further arguments of srun or mpirun."""


class TorchrunPlan(Plan, frozen=True, kw_only=True, omit_defaults=True, tag="torchrun"):
    """Run the payload by one ``torchrun`` on each node."""

    python: str = "python3"
    """The Python on the site that has PyTorch."""
    torchrun: str | None = None
    """The command; None takes ``python -m torch.distributed.run``."""
    processes_per_node: Count | Literal["auto", "gpus", "cpus", "tasks"] = "auto"
    """auto is one for each GPU that Slurm gave, without GPUs one for each task."""
    min_nodes: Count | None = None
    """Go on with so many when nodes are lost; None needs all of them."""
    max_restarts: Count = 0
    """Times that all processes are started again when one fails."""
    interface: str | None = None
    start_timeout: Seconds = 300.0
    """Seconds for all nodes to meet."""
    arguments: tuple[str, ...] = ()
    """Further arguments of torchrun."""


class SparkPlan(Plan, frozen=True, kw_only=True, omit_defaults=True, tag="spark"):
    """Run the payload attached to a Spark cluster over all nodes of the job."""

    python: str = "python3"
    """The Python on the site that has pyspark; executors use it, too."""
    spark_home: str | None = None
    """None takes SPARK_HOME, or else what comes with pyspark."""
    cores_per_node: Count | None = None
    """None takes what Slurm gave."""
    executor_memory_mib: Count | None = None
    """The heap of the executor on each node; None takes three fifths of what Slurm gave."""
    driver_memory_mib: Count = 1024
    conf: dict[str, str] = {}
    """Further lines of spark-defaults.conf."""
    interface: str | None = None
    temp_dir: str | None = None
    """A folder on every node's own disk."""
    start_timeout: Seconds = 120.0


AnyPlan = CommandPlan | RayPlan | MpiPlan | TorchrunPlan | SparkPlan
"""Every plan that may stand in a request."""
