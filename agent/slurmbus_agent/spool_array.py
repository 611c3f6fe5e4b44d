"""What the tasks of a job array share in the spool: the request and the files that each of them gets.

A thousand tasks would otherwise store the request and the payload a thousand times.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from slurmbus_agent.spool_files import StoredRequest
from slurmbus_agent.spool_work import WorkDir
from slurmbus_agent.spool_writing import SpoolUnusable, make_folder, sync_folder, typed, write
from slurmbus_protocol.subjects import check_sha256

_decoder = msgspec.msgpack.Decoder(StoredRequest)
_WRITABLE = 0o200
_READ_ONLY = 0o400
_EXECUTABLE = 0o500


class ArrayDir:
    """The folder ``arrays/<key>``; made by :meth:`slurmbus_agent.spool.Spool.array`.

    Every method works on the shared file system and may take long: call them in a thread.

    Args:
        path: the folder.
        count: is called once for each metadata operation on the file system.
    """

    def __init__(self, path: Path, count: Callable[[], None]) -> None:
        self.path = path
        self._count = count

    def create(self, request: StoredRequest) -> None:
        """Make the folder and keep the request in it; one that is there already stays as it is."""
        make_folder(self.path)
        self._count()
        write_request(self.path, request)

    def read_request(self) -> StoredRequest | None:
        """Give the request, or None when there is none."""
        self._count()
        return read_request(self.path)

    def files(self) -> WorkDir:
        """Make the folder of the files that tasks share, by content."""
        make_folder(self.path / "files")
        return WorkDir(self.path / "files")

    @staticmethod
    def file_name(sha256: str, *, executable: bool) -> str:
        """Give the name of a shared file in that folder."""
        return f"{check_sha256(sha256)}{'.x' if executable else ''}"

    def has(self, name: str) -> bool:
        """Tell whether a shared file is there, whole: it becomes read-only last."""
        self._count()
        path = self.path / "files" / name
        with typed(path):
            return path.exists() and not path.stat().st_mode & _WRITABLE

    def seal(self, name: str) -> None:
        """Make a shared file read-only: what one task writes its siblings must not read."""
        path = self.path / "files" / name
        self._count()
        with typed(path):
            path.chmod(_EXECUTABLE if name.endswith(".x") else _READ_ONLY)

    def link(self, name: str, work: WorkDir, path: str) -> None:
        """Let a shared file appear in a task's working directory: as a hard link, else as a symlink."""
        source, target = self.path / "files" / name, work.path / path
        new = target.with_name(f".{secrets.token_hex(8)}")
        self._count()
        make_folder(target.parent)
        with typed(target):
            try:
                os.link(source, new)
            except OSError:  # another file system, or one that links within a folder only
                new.symlink_to(source)
            new.replace(target)


def write_request(folder: Path, request: StoredRequest) -> None:
    """Keep a request in a folder, durably; one that is there already stays as it is."""
    if not (folder / "request").exists():
        write(folder / "request", msgspec.msgpack.encode(request))
        with typed(folder):
            sync_folder(folder.parent)


def read_request(folder: Path) -> StoredRequest | None:
    """Give the request in a folder, or None when there is none."""
    path = folder / "request"
    with typed(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SpoolUnusable(f"{path} can't be read: {error}", hint="somebody else wrote to it") from error
