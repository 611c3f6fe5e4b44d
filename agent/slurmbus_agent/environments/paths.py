"""Writing files below one folder, whatever an archive calls them: nothing ever lands outside.

Every folder on the way is opened from the one above it without following symlinks, so neither a name nor a symlink
that came with the archive can lead elsewhere. Symlinks are made last, and only those that stay inside.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from slurmbus_protocol.errors import EnvironmentUnusable

_LONGEST = 4000
_LONGEST_NAME = 255


class Hostile(EnvironmentUnusable):
    """The archive holds what no environment has."""

    code = "environment-hostile"
    default_hint = "nothing of it was installed; pack it again from what you trust"


@dataclass
class Budget:
    """How much may be written."""

    size: int
    files: int

    def take(self, size: int, files: int) -> None:
        """Count something; Hostile when it is too much."""
        self.size -= size
        self.files -= files
        if self.size < 0 or self.files < 0:
            what = "larger" if self.size < 0 else "of more files"
            raise Hostile(
                f"the environment is {what} than this site allows",
                hint="the limits are max_bytes and max_files in [environments] of the agent's SITE.settings.toml",
            )


def parts(name: str, what: str) -> list[str]:
    """Take a relative path apart; Hostile when it leads outside, or can't be a path."""
    split = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in split or "\0" in name or "\\" in name:
        raise Hostile(f"{what} holds {name[:200]!r}, which leads outside of the environment")
    if not split or len(name) > _LONGEST or any(len(os.fsencode(part)) > _LONGEST_NAME for part in split):
        raise Hostile(f"{what} holds {name[:80]!r}, which can't be a file's name")
    return split


class Tree:
    """A folder that is being filled.

    Args:
        root: the folder.
        budget: what may be written.
        what: is unpacked, for errors.
    """

    def __init__(self, root: Path, budget: Budget, what: str) -> None:
        self._root = root
        self._budget = budget
        self.what = what
        self._links: list[tuple[str, str]] = []
        self._open: tuple[list[str], int] | None = None

    def _inside(self, folders: list[str]) -> int:
        """Give a folder, open until another one is asked for."""
        if self._open is not None and self._open[0] == folders:
            return self._open[1]
        self.close()
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700, dir_fd=at)
                    self._budget.take(0, 1)
                below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = below
        except NotADirectoryError as error:
            os.close(at)
            raise Hostile(f"{self.what}: {'/'.join(folders)!r} is a file and a folder at once") from error
        except BaseException:
            os.close(at)
            raise
        self._open = (folders, at)
        return at

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    @contextlib.contextmanager
    def file(self, name: str, *, executable: bool = False) -> Iterator[_Counted]:
        """Give an open file to write into; one of the same name is replaced."""
        *folders, last = parts(name, self.what)
        at = self._inside(folders)
        self._budget.take(0, 1)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(last, dir_fd=at, follow_symlinks=False).st_mode):
                raise Hostile(f"{self.what}: {name!r} is a file and a folder at once")
            os.unlink(last, dir_fd=at)
        mode = 0o700 if executable else 0o600
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(last, flags, mode, dir_fd=at), "wb") as file:
            yield _Counted(file, self._budget)

    def folder(self, name: str) -> None:
        """Make a folder."""
        self._inside(parts(name, self.what))

    def hard_link(self, name: str, target: str) -> None:
        """Make a second name of a file that is there."""
        *folders, last = parts(name, self.what)
        *others, first = parts(target, self.what)
        there = os.dup(self._inside(others))
        try:
            at = self._inside(folders)
            self._budget.take(0, 1)
            if not stat.S_ISREG(os.stat(first, dir_fd=there, follow_symlinks=False).st_mode):
                raise Hostile(f"{self.what}: {name!r} is a hard link to what is no file")
            os.link(first, last, src_dir_fd=there, dst_dir_fd=at, follow_symlinks=False)
        except (FileNotFoundError, FileExistsError) as error:
            raise Hostile(f"{self.what}: {name!r} can't be a hard link to {target!r}") from error
        finally:
            os.close(there)

    def symlink(self, name: str, target: str) -> None:
        """Note a symlink; :meth:`finish` makes it."""
        *folders, _ = parts(name, self.what)
        if target.startswith("/") or posixpath.normpath(posixpath.join(*folders, target)).split("/")[0] == "..":
            raise Hostile(f"{self.what}: the symlink {name!r} leads outside, to {target[:200]!r}")
        self._links.append((name, target))

    def finish(self) -> None:
        """Make the symlinks; Hostile when one leads outside by way of another."""
        for name, target in self._links:
            *folders, last = parts(name, self.what)
            self._budget.take(0, 1)
            try:
                os.symlink(target, last, dir_fd=self._inside(folders))
            except FileExistsError as error:
                raise Hostile(f"{self.what}: {name!r} is there twice") from error
        self.close()
        root = os.path.realpath(self._root)
        for name, target in self._links:
            leads = os.path.realpath(os.path.join(root, name))  # noqa: PTH118
            if leads != root and not leads.startswith(root + "/"):
                raise Hostile(f"{self.what}: the symlink {name!r} leads outside, to {target[:200]!r}")
        self._links.clear()


class _Counted:
    """A file whose bytes are counted before they are written."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file = file
        self._budget = budget

    def write(self, data: bytes) -> int:
        """Write some bytes; Hostile when there are too many."""
        self._budget.take(len(data), 0)
        return self._file.write(data)

    def date(self, modified: float) -> None:
        """Set the time of the last change, once everything is written."""
        self._file.flush()
        with contextlib.suppress(OverflowError, OSError):  # a time that no file system knows
            os.utime(self._file.fileno(), (modified, modified))


def make_read_only(root: Path) -> tuple[int, int]:
    """Take everybody's permission to write from all that is in a folder, and give its bytes and files.

    Nothing keeps more than the permissions to read and to execute: no setuid, no setgid.
    """
    size = files = 0
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118
            status = os.stat(path, follow_symlinks=False)  # noqa: PTH116
            files += 1
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
                os.chmod(path, 0o555 if status.st_mode & stat.S_IXUSR else 0o444)  # noqa: PTH101
        files += 1
        os.chmod(folder, 0o555)  # noqa: PTH101, S103
    return size, files
