"""Slurm through its commands, driven from here: the scheduler's child process runs on the login node."""

from __future__ import annotations

from contract.native_site import NativeSite


class CommandsSite(NativeSite):
    """A user of the cluster, whose agent has no pyslurm."""

    kind = "commands"
