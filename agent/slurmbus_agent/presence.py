"""Which process serves a site on this host: a small file in the spool, and ``/proc`` to tell whether it still lives.

One file a host, since login nodes share the spool; process ids mean nothing on another host or after a boot.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from pathlib import Path

import msgspec

from slurmbus_agent import __version__
from slurmbus_protocol.messages import LogTail

FOLDER = "agents"
"""In the spool's root: presence, lock and log of each host's agent."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's process on one host."""

    pid: int
    ticks: str
    """When the kernel started it; a recycled pid has another one. Source: proc_pid_stat(5), field 22."""
    boot: str
    host: str
    version: str
    program: str
    """The environment from which it runs: another one after an upgrade."""
    since: float
    ready: bool = False
    """It has reached the bus, and serves or stands by."""

    @property
    def alive(self) -> bool:
        """Whether this very process still runs here."""
        return self.host == platform.node() and self.boot == _boot() and _ticks(self.pid) == self.ticks

    def stop(self) -> None:
        """Ask it to end."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)


class Places:
    """Where the agents of a site keep what is about themselves.

    Args:
        spool: the spool's root.
    """

    def __init__(self, spool: Path) -> None:
        self.folder = spool / FOLDER
        name = platform.node()
        self.presence = self.folder / f"{name}.json"
        self.process = self.folder / f"{name}.process"
        """Its pid and ticks once more, as a shell reads them: cron's look every few minutes shall start no Python."""
        self.lock = self.folder / f"{name}.lock"
        self.log = self.folder / f"{name}.log"
        self.last_words = self.folder / f"{name}.stderr"
        """What was said outside the log: by the interpreter, by libraries; of the last start only."""

    def read(self) -> Presence | None:
        """Give what the file of this host says, whether or not that process lives."""
        return read(self.presence)

    def log_tail(self, offset: int | None, length: int) -> LogTail:
        """Give a piece of this host's log; of a log that was put aside meanwhile from its beginning."""
        host = platform.node()
        try:
            with self.log.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begin = max(0, size - length) if offset is None else offset if offset <= size else 0
                file.seek(begin)
                return LogTail(host=host, path=str(self.log), offset=begin, data=file.read(length))
        except FileNotFoundError:
            return LogTail(host=host, path="")

    def everywhere(self) -> list[Presence]:
        """Give the presences of all hosts that share the spool."""
        found = (read(path) for path in sorted(self.folder.glob("*.json")))
        return [one for one in found if one is not None]

    def arrive(self) -> None:
        """Say that this process is the agent here."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(mine(ready=False))

    def ready(self) -> None:
        """Say that this process has reached the bus, unless another one has come since."""
        found = self.read()
        if found is not None and found.pid == os.getpid() and not found.ready:
            self._write(msgspec.structs.replace(found, ready=True))

    def leave(self) -> None:
        """Take the file away, unless another process has come since."""
        found = self.read()
        if found is not None and found.pid == os.getpid():
            self.process.unlink(missing_ok=True)
            self.presence.unlink(missing_ok=True)

    def _write(self, presence: Presence) -> None:
        _replace(self.presence, msgspec.json.encode(presence))
        _replace(self.process, f"{presence.pid} {presence.ticks}\n".encode())


def mine(*, ready: bool) -> Presence:
    """Describe this process."""
    return Presence(
        pid=os.getpid(),
        ticks=_ticks(os.getpid()),
        boot=_boot(),
        host=platform.node(),
        version=__version__,
        program=str(program()),
        since=time.time(),
        ready=ready,
    )


def program() -> Path:
    """Give the environment from which this process runs, its symlinks followed."""
    return Path(sys.prefix).resolve()


def read(path: Path) -> Presence | None:
    """Read a presence; None when there is none, or one that nobody could have written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Presence)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)


def _boot() -> str:
    return _BOOT.read_text().strip() if _BOOT.exists() else ""


def _ticks(pid: int) -> str:
    """Give when a process was started, or nothing when it is gone or has ended and nobody has noticed yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
