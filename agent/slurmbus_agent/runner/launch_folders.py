"""Folders on a node's own disk that a launch uses and removes; what a killed one left, the next one removes."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress

MARK = ".slurmbus"
"""A file in each folder, locked for as long as the folder is in use."""
SETTLED = 60.0
"""Seconds after which a folder without a lock is nobody's; a new one isn't locked at once."""


class Folders:
    """The folders of one helper."""

    def __init__(self) -> None:
        self._made: dict[str, int] = {}

    def make(self, path: str) -> None:
        """Make a private folder, and remove its forgotten brothers; OSError when it can't be made."""
        os.mkdir(path, 0o700)
        lock = os.open(f"{path}/{MARK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._made[path] = lock
        parent, _, name = path.rpartition("/")
        _sweep(parent or "/", name.partition("-")[0] + "-")

    def remove(self) -> None:
        """Remove what was made."""
        for path, lock in self._made.items():
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
        self._made.clear()


def _sweep(parent: str, prefix: str) -> None:
    """Remove this user's folders of this kind that nobody holds any more."""
    with suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(prefix):
                with suppress(OSError):
                    _remove_forgotten(entry)


def _remove_forgotten(entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or time.time() - status.st_mtime < SETTLED:
        return
    lock = os.open(f"{entry.path}/{MARK}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)
    finally:
        os.close(lock)
