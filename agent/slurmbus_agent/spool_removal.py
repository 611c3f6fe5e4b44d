"""Removing folders of the spool: never anything outside, in small steps, and as far as the file system lets it.

Every name counts from an open folder and no symlink is followed, so nobody can make this reach another place while it
works. What can't be removed is noted and left for the next time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slurmbus_agent.spool_writing import SpoolUnusable, typed

_DEEPEST = 32
"""Folders inside each other, each of which is held open; what lies deeper is brought up first."""
_AT_ONCE = 1000
"""Names that are read from a folder before they are removed: a folder may hold millions."""
_GIVE_UP = 20
"""Obstacles after which the rest of a folder is left for another time: most likely nothing in it can be removed."""
_OWNER = stat.S_IRWXU

Pace = Callable[[], None]
"""Called before each operation on the file system; it waits, or raises Stopped."""


class Stopped(Exception):
    """Something that takes long shall end here; it is gone on with another time."""


class Steps:
    """Waits between the operations of something that takes long, and stops it.

    Args:
        per_second: operations.
        guard: False when nothing may be done any more.
    """

    def __init__(self, per_second: float, guard: Callable[[], bool] = lambda: True) -> None:
        self._pause = 1 / per_second
        self._guard = guard
        self._ended = threading.Event()

    def __call__(self) -> None:
        """Wait for the next step's turn.

        Raises:
            Stopped: there is none.
        """
        if self._ended.wait(self._pause) or not self._guard():
            raise Stopped

    def stop(self) -> None:
        """Let no further step be made, from now on."""
        self._ended.set()


@dataclass(frozen=True)
class Obstacle:
    """Something that couldn't be removed."""

    path: str
    reason: str


@contextlib.contextmanager
def opened(root: Path, *names: str) -> Iterator[list[int]]:
    """Open folders of the spool's root, none of which may be a symlink.

    Raises:
        SpoolUnusable: one is, or can't be opened.
    """
    with typed(root), contextlib.ExitStack() as stack:
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, top)
        folders = []
        for name in names:
            try:
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            except NotADirectoryError as error:  # also what Linux says about a symlink here
                raise SpoolUnusable(
                    f"{root / name} is a symlink or no folder: nothing behind it is removed", hint="put it right"
                ) from error
            stack.callback(os.close, folder)
            folders.append(folder)
        yield folders


def move(root: Path, name: str, source: str, target: str, new: str) -> bool:
    """Rename something from one folder of the root into another, durably; False when it isn't there."""
    with opened(root, source, target) as (old, there), typed(root / source / name):
        try:
            try:
                os.rename(name, new, src_dir_fd=old, dst_dir_fd=there)
            except PermissionError:  # a folder that its owner may not write to can't move either
                _put_right(name, old)
                os.rename(name, new, src_dir_fd=old, dst_dir_fd=there)
        except FileNotFoundError:
            return False
        os.fsync(there)
        os.fsync(old)
    return True


class Removal:
    """Removes what is in one open folder, by name.

    Args:
        folder: an open folder.
        shown: its path, for people.
        pace: called before each operation.
    """

    def __init__(self, folder: int, shown: str, pace: Pace) -> None:
        self._top = folder
        self._shown = shown
        self._pace = pace
        self._device = os.fstat(folder).st_dev
        self._brought_up: list[str] = []
        self._enough = _GIVE_UP
        self.obstacles: list[Obstacle] = []

    def remove(self, name: str) -> bool:
        """Remove a file, a symlink, or a folder with all that is in it; False when something is left."""
        self._enough = len(self.obstacles) + _GIVE_UP
        gone = self._entry(self._top, name, f"{self._shown}/{name}", 0, maybe_folder=True)
        while self._brought_up:
            deep = self._brought_up.pop()
            gone = self._entry(self._top, deep, f"{self._shown}/{deep}", 0, maybe_folder=True) and gone
        return gone

    def _entry(self, at: int, name: str, shown: str, depth: int, *, maybe_folder: bool) -> bool:
        try:
            if maybe_folder:
                with contextlib.suppress(NotADirectoryError):
                    return self._folder(at, name, shown, depth)
            self._pace()
            os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            return True
        except OSError as error:
            return self._left(shown, error.strerror or type(error).__name__)
        return True

    def _left(self, shown: str, reason: str) -> bool:
        self.obstacles.append(Obstacle(shown, reason))
        return False

    def _folder(self, at: int, name: str, shown: str, depth: int) -> bool:
        self._pace()
        inside = _open(name, at)
        try:
            if os.fstat(inside).st_dev != self._device:
                return self._left(shown, "another file system is mounted there")
            if depth >= _DEEPEST:
                new = secrets.token_hex(16)
                os.rename(name, new, src_dir_fd=at, dst_dir_fd=self._top)
                self._brought_up.append(new)
                return True
            if not self._emptied(inside, shown, depth):
                return False
        finally:
            os.close(inside)
        self._pace()
        os.rmdir(name, dir_fd=at)
        return True

    def _emptied(self, inside: int, shown: str, depth: int) -> bool:
        stuck: set[str] = set()
        while True:
            self._pace()
            with os.scandir(inside) as entries:
                some = list(itertools.islice((entry for entry in entries if entry.name not in stuck), _AT_ONCE))
            if not some:
                return not stuck
            for entry in some:
                if len(self.obstacles) >= self._enough:
                    return False
                is_folder = entry.is_dir(follow_symlinks=False)
                if not self._entry(inside, entry.name, f"{shown}/{entry.name}", depth + 1, maybe_folder=is_folder):
                    stuck.add(entry.name)


def _open(name: str, at: int) -> int:
    _put_right(name, at)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)


def _put_right(name: str, at: int) -> None:
    """Give a folder's owner its permissions back: a payload may have taken them from itself."""
    status = os.stat(name, dir_fd=at, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode) and status.st_mode & _OWNER != _OWNER:
        folder = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        try:
            with contextlib.suppress(PermissionError):  # somebody else's; what can't be removed says so itself
                os.chmod(f"/proc/self/fd/{folder}", _OWNER)  # noqa: PTH101 - the open folder, whatever its name is now
        finally:
            os.close(folder)


def measure(root: Path, folder: str, name: str, pace: Pace) -> int:
    """Give the bytes that something in a folder of the root takes up on the disk, as far as that can be seen."""
    with opened(root, folder) as (at,):
        return _size(at, name, pace, 0)


def _size(at: int, name: str, pace: Pace, depth: int) -> int:
    pace()
    try:
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        size = status.st_blocks * 512  # POSIX: st_blocks counts these, whatever the file system's own are
        if not stat.S_ISDIR(status.st_mode) or depth > _DEEPEST:
            return size
        inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    except OSError:  # gone, or not ours to look at
        return 0
    try:
        names = os.listdir(inside)
        return size + sum(_size(inside, below, pace, depth + 1) for below in names)
    finally:
        os.close(inside)
