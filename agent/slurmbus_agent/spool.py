"""The spool: everything of every job that both the agent and compute nodes see, on the cluster's shared file system.

::

    <root>/                        0700, files 0600
        runner-<hash>.py           the runner, one file a version
        lib/<sha256>/              modules that are put beside payloads, by content
        link                       where runners reach the agent
        jobs/<key>.<task>/         see slurmbus_agent.runner.protocol
        trash/                     job folders on their way out
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

import msgspec

from slurmbus_agent.runner.claims import AGENT_NODE
from slurmbus_agent.spool_files import Claim, EndReport, LinkAddress, Report, RunnerPlan, StoredRequest
from slurmbus_agent.spool_job import JobDir
from slurmbus_agent.spool_runner import batch_script, bundle
from slurmbus_agent.spool_work import WorkDir, check_path
from slurmbus_agent.spool_writing import (
    FOLDER_MODE,
    SpoolError,
    SpoolFull,
    SpoolUnusable,
    make_folder,
    sync_folder,
    typed,
    write,
)
from slurmbus_protocol import subjects
from slurmbus_protocol.errors import BlobCorrupt, InvalidName, InvalidSetting

__all__ = [
    "AGENT_NODE",
    "Claim",
    "EndReport",
    "JobDir",
    "LinkAddress",
    "Report",
    "RunnerPlan",
    "Spool",
    "SpoolError",
    "SpoolFull",
    "SpoolUnusable",
    "StoredRequest",
    "WorkDir",
    "batch_script",
    "check_path",
]

_HEX_OF_NAME = 12


class Spool:
    """The spool under one folder.

    Every method works on the shared file system and may take long: call them in a thread.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.metadata_calls = 0
        """Metadata operations by which jobs were looked at; the shared file system has to answer each."""

    def prepare(self) -> Path:
        """Make the spool ready for use, and give the path of the runner.

        Raises:
            InvalidSetting: the folder belongs to somebody else.
            SpoolError: it can't be made.
        """
        for folder in (self.root, self.root / "jobs", self.root / "lib", self.root / "trash"):
            make_folder(folder)
        with typed(self.root):
            status = self.root.stat()
            if status.st_uid != os.getuid():
                raise InvalidSetting(f"spool: {self.root} belongs to another user", hint="set a folder of your own")
            self.root.chmod(FOLDER_MODE)
        name, content = bundle()
        self._install(self.root / name, content)
        return self.root / name

    def install_pipes_module(self, sha256: str, source: bytes | Path) -> Path:
        """Keep the ``dagster_pipes`` module with this hash, and give the folder to be put on a payload's PYTHONPATH.

        Raises:
            BlobCorrupt: the content has another hash.
        """
        folder = self.root / "lib" / subjects.check_sha256(sha256)[:_HEX_OF_NAME]
        content = source if isinstance(source, bytes) else source.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BlobCorrupt(f"the dagster_pipes module isn't the one with hash {sha256[:12]}")
        make_folder(folder)
        self._install(folder / "dagster_pipes.py", content)
        return folder

    @staticmethod
    def _install(path: Path, content: bytes) -> None:
        """Write a file that never changes, unless it is there with this very content."""
        with typed(path):
            try:
                if path.read_bytes() == content:
                    return
            except FileNotFoundError:
                pass
        write(path, content)

    def write_link(self, address: LinkAddress) -> None:
        """Tell runners where the agent listens now."""
        write(self.link, msgspec.json.encode(address))

    @property
    def link(self) -> Path:
        """The file that says where the agent listens."""
        return self.root / "link"

    def keys(self) -> list[tuple[str, int]]:
        """Give the (job key, task) of every job in the spool, by one look at one folder."""
        self._count()
        with typed(self.root):
            try:
                names = [path.name for path in (self.root / "jobs").iterdir()]
            except FileNotFoundError:
                return []
        return sorted(found for name in names if (found := _parse(name)) is not None)

    def job(self, key: str, task: int) -> JobDir:
        """Give a job's folder, which need not be there; InvalidName when key or task can't be right."""
        if task < 0:
            raise InvalidName(f"task {task} is negative", hint="count from 0")
        name = f"{subjects.check_key(key)}.{task}"
        return JobDir(self.root / "jobs" / name, name, self._count, self._discard)

    def _count(self) -> None:
        self.metadata_calls += 1

    def _discard(self, name: str) -> None:
        """Rename a job's folder into the trash, then empty the trash of it; an interruption leaves it there."""
        jobs = self.root / "jobs"
        trash = self.root / "trash"
        with typed(jobs / name):
            for folder in (jobs, trash):
                if folder.is_symlink():
                    raise SpoolUnusable(f"{folder} is a symlink: nothing behind it is removed")
            gone = trash / f"{name}.{secrets.token_hex(4)}"
            try:
                (jobs / name).rename(gone)
            except FileNotFoundError:
                return
            sync_folder(jobs)
            shutil.rmtree(gone)

    def empty_trash(self) -> int:
        """Finish what interrupted removals left, and give how many."""
        trash = self.root / "trash"
        with typed(trash):
            if trash.is_symlink():
                raise SpoolUnusable(f"{trash} is a symlink: nothing behind it is removed")
            left = list(trash.iterdir())
            for path in left:
                if path.is_symlink():
                    path.unlink()
                else:
                    shutil.rmtree(path)
        return len(left)

    def check_room(self, size: int, files: int, where: Path | None = None) -> None:
        """Raise SpoolFull when ``size`` more bytes or ``files`` more files don't fit into the spool, or ``where``.

        A quota that the file system doesn't show here is noticed when something is written.
        """
        path = where or self.root
        self._count()
        with typed(path):
            room = os.statvfs(path)
        free = room.f_bavail * room.f_frsize
        if free < size:
            raise SpoolFull(f"{path} has {free:,} bytes left, and {size:,} are needed")
        if room.f_files and room.f_favail < files:  # some file systems don't count files: f_files is 0
            raise SpoolFull(f"{path} has room for {room.f_favail:,} more files, and {files:,} are needed")


def _parse(name: str) -> tuple[str, int] | None:
    key, _, task = name.partition(".")
    try:
        subjects.check_key(key)
    except InvalidName:
        return None
    return (key, int(task)) if task.isdecimal() and str(int(task)) == task else None
