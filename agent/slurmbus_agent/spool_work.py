"""The working directory of a payload, and the files that are put there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from slurmbus_agent.spool_writing import FILE_MODE, FOLDER_MODE, typed
from slurmbus_protocol.errors import InvalidSetting

_LONGEST_NAME = 255
_EXECUTABLE = 0o700
_INSIDE = "name files relative to the working directory, e.g. 'data/input.csv'"


class WorkDir:
    """Where the payload runs and its files lie."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        """Give the path."""
        return str(self.path)

    @contextlib.contextmanager
    def place(self, path: str, *, executable: bool = False, field: str = "files") -> Iterator[BinaryIO]:
        """Give an open file to write into; it takes its place at the end of the block, whole or not at all.

        Folders on the way are made. No symlink is followed, so the file can't land outside.

        Args:
            path: where it goes, relative to the working directory.
            executable: whether its owner may execute it.
            field: the field of the request that named it, for the error.

        Raises:
            InvalidSetting: the path leaves the working directory, or something is in its way.
            SpoolFull: there is no room.
        """
        *folders, name = check_path(path, field)
        with typed(self.path / path), contextlib.ExitStack() as stack:
            at = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(lambda: os.close(at))
            for folder in folders:
                below = _enter(at, folder, path, field)
                os.close(at)
                at = below
            new = f".{secrets.token_hex(8)}"
            mode = _EXECUTABLE if executable else FILE_MODE
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=at), "wb") as file:
                try:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    _settle(at, new, name, path, field)
                except BaseException:  # also a cancelled download leaves nothing behind
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(new, dir_fd=at)
                    raise


def check_path(path: str, field: str = "files") -> list[str]:
    """Give the parts of a path inside the working directory; InvalidSetting names the field when it leads outside."""
    parts = path.split("/")
    if not path or "\0" in path:
        raise InvalidSetting(f"{field}: {path!r} is no file name", hint=_INSIDE)
    if path.startswith("/"):
        raise InvalidSetting(f"{field}: {path!r} is an absolute path", hint=_INSIDE)
    if ".." in parts:
        raise InvalidSetting(f"{field}: {path!r} leaves the working directory", hint=_INSIDE)
    parts = [part for part in parts if part not in {"", "."}]
    if not parts or path.endswith(("/", "/.")):
        raise InvalidSetting(f"{field}: {path!r} names a folder, not a file", hint=_INSIDE)
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise InvalidSetting(f"{field}: a name in {path[:80]!r} is longer than {_LONGEST_NAME} bytes", hint="")
    return parts


def _enter(at: int, folder: str, path: str, field: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, FOLDER_MODE, dir_fd=at)
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    except NotADirectoryError as error:  # also what Linux says about a symlink here
        raise InvalidSetting(f"{field}: {path!r} can't be put there: {folder!r} is no folder") from error


def _settle(at: int, new: str, name: str, path: str, field: str) -> None:
    try:
        os.rename(new, name, src_dir_fd=at, dst_dir_fd=at)
    except IsADirectoryError as error:
        raise InvalidSetting(f"{field}: {path!r} can't be put there: a folder has this name") from error
