"""How a payload is started: typed plans that launchers make and that the runner carries out inside the job.

Every plan has ``argv`` (the payload and its arguments) and ``preamble``; what a launcher adds are fields of its own. A
plan that is added here gets a module ``launch_<tag>.py`` in the runner.
"""

from __future__ import annotations

from typing import Annotated

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


AnyPlan = CommandPlan | RayPlan
"""Every plan that may stand in a request."""
