"""Slurm through its commands, driven from here: the scheduler's child process runs on the login node."""

from __future__ import annotations

from contract.native_site import NativeSite
from slurmbus_cluster import Cluster


class CommandsSite(NativeSite):
    """A user of the cluster, whose agent has no pyslurm."""

    kind = "commands"

    def __init__(self, cluster: Cluster, user: str = "alice") -> None:
        super().__init__(cluster, user)
        self.env: dict[str, str] = {}
        """Further environment of the scheduler's process."""
        self.path = ""
        """A folder whose programs it finds before Slurm's."""

    @property
    def argv(self) -> list[str]:
        """The command on this machine that runs the child on the login node."""
        docker, run, *rest = super().argv
        env = self.env | ({"PATH": f"{self.path}:/usr/bin:/bin"} if self.path else {})
        return [docker, run, *(f"--env={name}={value}" for name, value in env.items()), *rest]
