"""A lock for work that takes minutes, on whatever file system the site has.

``flock`` and ``fcntl`` locks are local or missing on some NFS and Lustre mounts, so this one is a symlink: making it is
atomic everywhere and it holds its content. The target names the holder and a number that the holder counts up.

No clock is compared with another host's: a holder is gone when its number hasn't moved for a while on the clock of
whoever waits, or at once when it was a process of this very host and doesn't live any more.

Should two ever believe that they hold it, both do the work and one's result is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
from pathlib import Path

from slurmbus_agent.spool_writing import typed

RENEW_EVERY = 5.0
ABANDONED_AFTER = 30.0
"""Seconds without a sign of life: a login node that swaps may pause a process for several."""


class InstallLock:
    """One lock; the methods work on the shared file system: call them in a thread.

    Args:
        path: of the symlink.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._me = f"{_here()}:{os.getpid()}:{_started(os.getpid())}:{secrets.token_hex(8)}"
        self._count = 0

    def take(self) -> bool:
        """Try to take it; False when somebody has it."""
        with typed(self._path):
            try:
                self._path.symlink_to(f"{self._me}:0")
            except FileExistsError:
                return self._is_mine(self.holder())  # NFS repeated our own call
        return True

    def holder(self) -> str | None:
        """Give who holds it and how far they have counted, or None."""
        with typed(self._path):
            try:
                return str(self._path.readlink())
            except FileNotFoundError:
                return None

    def renew(self) -> None:
        """Show that its holder lives."""
        self._count += 1
        new = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        if self._is_mine(self.holder()):
            with typed(self._path):
                new.symlink_to(f"{self._me}:{self._count}")
                new.rename(self._path)

    def release(self) -> None:
        """Let go."""
        if self._is_mine(self.holder()):
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def break_(self, holder: str) -> None:
        """Take it away from a holder that is gone; one that took it meanwhile keeps it."""
        aside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(aside)
            if str(aside.readlink()) != holder:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self._path, follow_symlinks=False)
            aside.unlink()

    def _is_mine(self, holder: str | None) -> bool:
        return holder is not None and holder.rpartition(":")[0] == self._me


def is_dead(holder: str) -> bool:
    """Tell whether a holder was a process of this host that doesn't live any more; False also when nobody can tell."""
    here, _, rest = holder.partition(":")
    pid, _, rest = rest.partition(":")
    started = rest.partition(":")[0]
    return here == _here() and pid.isdecimal() and started not in {"", "0"} and _started(int(pid)) != started


def host(holder: str) -> str:
    """Give the host of a holder, for people."""
    return holder.partition("/")[0]


def _here() -> str:
    """Name this host, its boot and its space of process ids: containers may share a host's name."""
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(os.stat("/proc/self/ns/pid").st_ino)  # noqa: PTH116 - no other way to follow it
    return f"{platform.node()}/{boot}/{space}"


def _started(pid: int) -> str:
    """Tell when a process was started, in ticks since the boot; 0 when it isn't there. Source: proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return "0" if fields[0] == "Z" else fields[19]
