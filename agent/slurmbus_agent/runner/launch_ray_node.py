"""How much of a node Ray gets, and where it keeps its files there."""

from __future__ import annotations

import os

from slurmbus_agent.runner.launch_errors import LaunchFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slurmbus_agent.runner.launch_crew import Crew, Member

STORE_SHARE = 0.3
"""Of the node's memory, for objects; as Ray has it. Source: ray start --help, --object-store-memory."""
SHARED_SHARE = 0.9
"""Of what is free in /dev/shm; other programs put things there, too."""
LEAST_STORE = 80 * 1024 * 1024
"""Bytes; Ray refuses less than 75 MiB."""
SLOW_STORE = 2 * 1024 * 1024 * 1024
"""Bytes for objects where they must be kept in files."""
INNER = "/r"
"""Ray's own folder in ours: it opens that to everybody, sockets and all, so ours is around it."""
LONGEST_FOLDER = 38
"""Letters. To the inner one Ray adds ``/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store``, and the
address of a socket has at most 107 bytes. Source: unix(7)."""
NETWORK_FILE_SYSTEMS = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "panfs", "afs", "fuse", "9p")
"""Beginnings of types: sockets and memory-mapped files don't belong there."""


class Sizes:
    """What Ray offers on one node."""

    def __init__(self, cpus: int, gpus: int, memory: int, object_store: int, *, slow_store: bool) -> None:
        self.cpus = cpus
        self.gpus = gpus
        self.memory = memory
        """Bytes for tasks."""
        self.object_store = object_store
        """Bytes for objects."""
        self.slow_store = slow_store
        """Whether objects are kept in files because there isn't enough shared memory."""


def sizes(member: Member, options: dict[str, Any]) -> Sizes:
    """Divide what Slurm gave on a node, unless the options say otherwise; LaunchFailed when that can't be."""
    gpus = options["num_gpus_per_node"]
    if gpus is None:
        gpus = member.gpus or 0
    elif member.gpus is not None and gpus > member.gpus:
        raise LaunchFailed(
            f"num_gpus_per_node={gpus}, but Slurm gave {member.gpus} on {member.name}; ask for them, "
            f"e.g. SlurmQueueConfig(gpus_per_node='{gpus}')"
        )
    total = member.node.memory or member.physical_memory
    shared = int(member.shared_memory * SHARED_SHARE)
    store = options["object_store_memory"]
    slow = False
    if store is None:
        store = max(LEAST_STORE, min(int(total * STORE_SHARE), shared))
        if store > shared:
            slow, store = True, max(LEAST_STORE, min(int(total * STORE_SHARE), SLOW_STORE))
    else:
        slow = store > member.shared_memory
    memory = options["memory_per_node"]
    if memory is None:
        memory = total - store
    if memory <= 0:
        raise LaunchFailed(
            f"{member.name} has {total:,} bytes of memory, which leaves nothing for tasks beside {store:,} bytes of "
            "objects; ask Slurm for more, or set a smaller object_store_memory"
        )
    cpus = options["num_cpus_per_node"]
    return Sizes(member.node.cpus if cpus is None else cpus, gpus, memory, store, slow_store=slow)


def folder_of(crew: Crew, wanted: str | None, within: float) -> str:
    """Make a folder for Ray's files, the same on every node, and give its path.

    Raises:
        LaunchFailed: it can't be made on some node, or its name would be too long.
    """
    name = _name()
    if wanted is not None:
        folder = wanted.rstrip("/") + name
        if len(folder.encode()) > LONGEST_FOLDER:
            most = LONGEST_FOLDER - len(name)
            raise LaunchFailed(f"temp_dir: {wanted!r} is too long for the sockets in it; use at most {most} letters")
        return _made(crew, folder, within, "temp_dir")
    own = os.environ.get("TMPDIR", "").rstrip("/")
    if own and len((own + name).encode()) <= LONGEST_FOLDER and not _on_the_network(own):
        try:
            return _made(crew, own + name, within, "TMPDIR")
        except LaunchFailed:  # it is there on this node only
            pass
    return _made(crew, f"/tmp{_name()}", within, "temp_dir")  # noqa: S108 - private, and nobody can guess its name


def _name() -> str:
    return f"/ray-{os.urandom(4).hex()}"


def _made(crew: Crew, folder: str, within: float, what: str) -> str:
    try:
        crew.ask_all({"do": "folder", "path": folder}, within)
    except LaunchFailed as error:
        raise LaunchFailed(f"{what}: {folder} can't be made: {error}") from error
    return folder


def _on_the_network(folder: str) -> bool:
    """Tell whether a folder lies on a network file system."""
    best, kind = "", ""
    try:
        with open("/proc/mounts") as file:
            for line in file:
                _, point, type_, *_ = line.split(" ")
                if (folder + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                    best, kind = point, type_
    except OSError:
        return False
    return kind.startswith(NETWORK_FILE_SYSTEMS)
