"""The container engine: can it be used, and if not, what should the person do."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import docker
import docker.errors
from testcontainers.core.config import testcontainers_config
from testcontainers.core.docker_client import DockerClient

# testcontainers' own reaper is one more image to pull; leftovers are removed by label instead (see leftovers.py).
testcontainers_config.ryuk_disabled = True

ENGINE_TIMEOUT = 10.0
"""Seconds in which the engine must answer a ping."""

CALL_TIMEOUT = 120.0
"""Seconds for one call to the engine; a busy disk can make a container's start slow."""


def connect(timeout: float = CALL_TIMEOUT) -> docker.DockerClient:
    """Open a connection to the engine that the environment or Docker's context names, or the local one.

    testcontainers chooses it, and leaves its choice in `DOCKER_HOST` for the docker command. Raises
    `docker.errors.DockerException` when there is none.
    """
    return DockerClient(timeout=int(timeout)).client


def engine_problem() -> str | None:
    """Say in words for a person why no container engine can be used; None when one can."""
    hint = "Run `make engine` as root (Debian), or install and start Docker."
    if shutil.which("docker") is None:
        return f"The docker command isn't installed. {hint}"
    try:
        client = connect(ENGINE_TIMEOUT)
        try:
            client.ping()
        finally:
            client.close()
    except docker.errors.DockerException as error:
        if _no_permission(error):
            return (
                "A container engine is running, but this user may not use it. "
                "Run as root, or `sudo usermod -aG docker $USER` and log in again."
            )
        where = os.environ.get("DOCKER_HOST", "the local socket")
        return f"No container engine answers at {where}. {hint}"
    return None


def _no_permission(error: BaseException) -> bool:
    """Tell a refused socket from an absent engine: libraries wrap the error several times."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "Permission denied" in str(error)


def owner_labels() -> dict[str, str]:
    """Labels that name this process as a container's owner, so that a later one can tell whether it still lives."""
    pid = os.getpid()
    return {
        "slurmbus.owner.host": socket.gethostname(),
        "slurmbus.owner.pid": str(pid),
        "slurmbus.owner.start": _start_of(pid),
    }


def owner_is_dead(labels: dict[str, str]) -> bool:
    """Say whether the process that these labels name is known to be gone; False when that can't be known."""
    if labels.get("slurmbus.owner.host") != socket.gethostname() or not labels.get("slurmbus.owner.pid", "").isdigit():
        return False
    pid = int(labels["slurmbus.owner.pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # Alive, but process ids are reused: compare the time at which it started.
    return labels.get("slurmbus.owner.start", "") != _start_of(pid)


def _start_of(pid: int) -> str:
    """Return the process's start in clock ticks since boot (proc(5), field 22), or nothing where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return ""
    return stat.rpartition(")")[2].split()[19]
