"""MPI programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from dagster_slurmbus.launchers.bash import BashLauncher
from slurmbus_protocol.plans import AnyPlan, MpiPlan


class MpiLauncher(BashLauncher):
    """Runs the payload as the ranks of an MPI program over all nodes of its job: a binary, or Python with mpi4py.

    When a rank fails the others are ended, and the job has its exit code. Every rank has Dagster Pipes' variables:
    open the session on rank 0 only.
    """

    how: Literal["srun", "mpirun"] = Field(
        default="srun", description="Who starts the ranks: Slurm's srun, or the mpirun that comes with the MPI."
    )
    mpi: str | None = Field(
        default=None,
        description="srun's --mpi, e.g. pmix or pmi2: how ranks find each other, which the MPI must know. When unset, "
        "pmix where srun offers it, else pmi2.",
    )
    mpirun: str = Field(default="mpirun", description="The mpirun, or its path, for how='mpirun' and on a laptop.")
    ranks: int | None = Field(default=None, ge=1, description="Ranks in all; the job's tasks when nothing is said.")
    ranks_per_node: int | None = Field(default=None, ge=1, description="Ranks on each node.")
    mpi4py: bool = Field(
        default=True,
        description="Whether .py payloads are started by 'python -m mpi4py': then an exception on one rank ends all "
        "of them, instead of leaving the others waiting.",
    )
    prefix: bool = Field(default=False, description="Whether each line of the output begins with its rank: [rank 3] …")
    interface: str | None = Field(
        default=None, description="The network between the nodes, e.g. ib0, for MPIs that don't find it by themselves."
    )
    arguments: list[str] = Field(default_factory=list, description="Further arguments of srun or mpirun.")

    def plan(self, payload: str, args: Sequence[str] = ()) -> AnyPlan:
        """Start every rank as :class:`BashLauncher` would start the payload."""
        is_python = self.interpreter is None and PurePosixPath(payload).suffix == ".py"
        return MpiPlan(
            argv=self.words(payload, args),
            preamble=self.preamble,
            how=self.how,
            mpi=self.mpi,
            mpirun=self.mpirun,
            ranks=self.ranks,
            ranks_per_node=self.ranks_per_node,
            mpi4py=self.mpi4py and is_python,
            prefix=self.prefix,
            interface=self.interface,
            arguments=tuple(self.arguments),
        )
