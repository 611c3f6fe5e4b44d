"""Ray inside the job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from dagster_slurmbus._compat import is_env_var
from dagster_slurmbus.launchers.bash import BashLauncher
from slurmbus_protocol.plans import AnyPlan, RayPlan

_GB = 1_000_000_000


class RayLauncher(BashLauncher):
    """Runs the payload with a Ray cluster over all nodes of its job; the payload calls ``ray.init("auto")``.

    The cluster is ready when every node has joined, and gone right after the payload's end. Ray must be installed in
    the Python that ``python`` names; ``ray[default]`` brings the dashboard.
    """

    ray_address: str | None = Field(
        default=None, description="host:port of a cluster that is there already; then none is started."
    )
    num_gpus_per_node: int | None = Field(
        default=None, ge=0, description="GPUs that Ray offers on each node; those that Slurm gave when nothing is said."
    )
    num_cpus_per_node: int | None = Field(
        default=None, ge=0, description="CPUs that Ray offers on each node; those that Slurm gave when nothing is said."
    )
    head_cpus: int | None = Field(
        default=None, ge=0, description="The same for the first node, where the payload itself runs: 0 keeps tasks off."
    )
    memory_gb_per_node: float | None = Field(
        default=None, gt=0, description="Memory for tasks on each node; what the object store leaves when unset."
    )
    object_store_memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="Memory for objects on each node; when unset 30 % of the job's, as far as /dev/shm has room.",
    )
    resources_per_node: dict[str, float] = Field(
        default_factory=dict, description="Resources of your own that tasks may ask for, on each node."
    )
    interface: str | None = Field(
        default=None, description="The network between the nodes, e.g. ib0; that of the nodes' names when unset."
    )
    temp_dir: str | None = Field(
        default=None,
        description="A folder on every node's own disk for Ray's files; TMPDIR or /tmp when unset. It must be short.",
    )
    dashboard: bool = Field(
        default=True, description="Whether Ray's dashboard is started, where it is installed; it takes some seconds."
    )
    start_timeout: float = Field(
        default=120.0, gt=0, description="Seconds within which every node must have joined, or the job fails."
    )
    pre_start_commands: list[str] = Field(
        default_factory=list,
        description="Lines that bash runs on every node before Ray starts there, under set -euo pipefail; what they "
        "export holds for Ray and its tasks.",
    )

    @field_validator("ray_address", mode="before")
    @classmethod
    def _address_has_a_port(cls, value: Any) -> Any:
        if isinstance(value, str) and not is_env_var(value):
            port = value.rpartition(":")[2]
            if value != "auto" and not port.isdigit():
                raise ValueError(f"{value!r} is no address: write host:port, e.g. node17:6379")
        return value

    def plan(self, payload: str, args: Sequence[str] = ()) -> AnyPlan:
        """Start the payload as :class:`BashLauncher` does, with Ray beside it."""
        return RayPlan(
            argv=self.words(payload, args),
            preamble=self.preamble,
            python=self.python,
            ray_address=self.ray_address,
            num_cpus_per_node=self.num_cpus_per_node,
            num_gpus_per_node=self.num_gpus_per_node,
            head_cpus=self.head_cpus,
            memory_per_node=_bytes(self.memory_gb_per_node),
            object_store_memory=_bytes(self.object_store_memory_gb),
            resources_per_node=self.resources_per_node,
            interface=self.interface,
            temp_dir=self.temp_dir,
            dashboard=self.dashboard,
            start_timeout=self.start_timeout,
            pre_start_commands=tuple(self.pre_start_commands),
        )


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * _GB)
