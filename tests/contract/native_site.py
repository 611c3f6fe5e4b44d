"""Slurm, driven from here: the scheduler's child process runs on the login node."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Sequence

from contract.sites import Site
from slurmbus_agent.scheduler.limits import CallBudget, CallLimits
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_cluster import Cluster

PYTHON = "/opt/slurmbus/bin/python"
PARENT = ("sh", "-c", '"$@"; exit $?', "sh")
"""A parent for the child, which ends with it: a process that is started from outside a container belongs to a thread of
the engine's, which may end at any time."""


class NativeSite(Site):
    """A user of the cluster."""

    kind = "native"
    minute = 60.0

    def __init__(self, cluster: Cluster, user: str = "alice") -> None:
        self.cluster = cluster
        self.user = user
        self.work_dir = f"/home/{user}/contract-{uuid.uuid4().hex[:8]}"
        cluster.exec("login", ["mkdir", self.work_dir], user=user)

    @property
    def argv(self) -> list[str]:
        """The command on this machine that runs the child on the login node."""
        container = str(self.cluster.host("login").container.id)
        child = [*PARENT, PYTHON, "-m", "slurmbus_agent.scheduler.child", self.kind]
        return ["docker", "exec", "--interactive", "--user", self.user, container, *child]

    def scheduler(self, limits: CallLimits | None = None, budget: CallBudget | None = None) -> ChildScheduler:
        # The contract's tests ask more often than an agent may.
        return ChildScheduler(self.argv, kind=self.kind, limits=limits, budget=budget or CallBudget(burst=100_000))

    def read(self, path: str) -> str:
        folder, name = posixpath.split(path)
        return self.run(["cat", f"{folder}/{name}"])

    def run(self, argv: Sequence[str], *, check: bool = True) -> str:
        """Run a command of the user on the login node."""
        return self.cluster.exec("login", argv, user=self.user, check=check).stdout
