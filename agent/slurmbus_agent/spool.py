"""The spool: everything of every job that both the agent and compute nodes see, on the cluster's shared file system.

::

    <root>/                        0700, files 0600
        runner-<hash>.py           the runner, one file a version
        lib/<sha256>/              modules that are put beside payloads, by content
        link                       where runners reach the agent
        bus                        the id of the bus on which every job has its record
        jobs/<key>.<task>/         see slurmbus_agent.runner.protocol
        arrays/<key>/              what the tasks of an array share: its request and files
        forgotten/                 folders of jobs that the bus has been asked to forget; still whole
        trash/                     job folders that are being removed
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec

from slurmbus_agent.runner.claims import AGENT_NODE
from slurmbus_agent.spool_array import ArrayDir
from slurmbus_agent.spool_files import Claim, EndReport, LinkAddress, Report, RunnerPlan, StoredRequest
from slurmbus_agent.spool_job import JobDir
from slurmbus_agent.spool_removal import Obstacle, Pace, Removal, measure, move, opened
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
    "ArrayDir",
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

JOBS = "jobs"
ARRAYS = "arrays"
FORGOTTEN = "forgotten"
TRASH = "trash"
_HEX_OF_NAME = 12
_link_decoder = msgspec.json.Decoder(LinkAddress)


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
        for folder in (self.root, *(self.root / name for name in (JOBS, ARRAYS, "lib", FORGOTTEN, TRASH))):
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

    def last_epoch(self) -> int:
        """Give the epoch of the last agent that led here, 0 when there was none or nobody can tell."""
        with typed(self.link):
            try:
                return _link_decoder.decode(self.link.read_bytes()).epoch
            except (FileNotFoundError, msgspec.DecodeError):
                return 0

    def bus_id(self) -> str | None:
        """Give the id of the bus that knows all jobs of this spool, or None when none does yet."""
        path = self.root / "bus"
        with typed(path):
            try:
                return path.read_text()
            except FileNotFoundError:
                return None

    def write_bus_id(self, bus_id: str) -> None:
        """Note that this bus knows all jobs of this spool."""
        write(self.root / "bus", bus_id.encode())

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
        return JobDir(self.root / JOBS / name, name, self._count, self._discard, self.array(key).path)

    def array(self, key: str) -> ArrayDir:
        """Give the folder that the tasks of an array share, which need not be there."""
        return ArrayDir(self.root / ARRAYS / subjects.check_key(key), self._count)

    def create_tasks(self, folders: Iterable[JobDir]) -> None:
        """Make the folders of an array's tasks, and their names durable at once."""
        for folder in folders:
            folder.create_task()
        with typed(self.root / JOBS):
            sync_folder(self.root / JOBS)

    def arrays(self) -> list[str]:
        """Give the key of every array."""
        self._count()
        try:
            with typed(self.root / ARRAYS):
                return sorted(path.name for path in (self.root / ARRAYS).iterdir())
        except FileNotFoundError:
            return []

    def remove_array(self, key: str, pace: Pace) -> list[Obstacle]:
        """Remove what the tasks of an array shared, and give what couldn't be removed."""
        return self._remove(ARRAYS, self.array(key).path.name, pace)

    def _count(self) -> None:
        self.metadata_calls += 1

    # ------------------------------------------------------------------ forgetting

    def folders(self) -> tuple[list[tuple[str, int]], list[str]]:
        """Give the (job key, task) of every job, and the names of what is no job's folder: it is left alone."""
        return self._jobs_in(JOBS)

    def forgotten(self) -> list[tuple[str, int]]:
        """Give the (job key, task) of every job that is being forgotten."""
        return self._jobs_in(FORGOTTEN)[0]

    def _jobs_in(self, folder: str) -> tuple[list[tuple[str, int]], list[str]]:
        self._count()
        jobs: list[tuple[str, int]] = []
        others: list[str] = []
        if not os.path.lexists(self.root / folder):
            return [], []
        with typed(self.root / folder), opened(self.root, folder) as (at,), os.scandir(at) as entries:
            for entry in entries:
                found = _parse(entry.name)
                if found is not None and entry.is_dir(follow_symlinks=False):
                    jobs.append(found)
                else:
                    others.append(entry.name)
        return sorted(jobs), sorted(others)

    def forget(self, key: str, task: int) -> bool:
        """Take a job out of sight, in one step; its folder stays whole. False when it isn't there (any more)."""
        name = self.job(key, task).path.name
        self._count()
        make_folder(self.root / FORGOTTEN)
        return move(self.root, name, JOBS, FORGOTTEN, name)

    def remove_forgotten(self, key: str, task: int, pace: Pace) -> list[Obstacle]:
        """Remove the folder of a job that the bus has forgotten, and give what couldn't be removed.

        An interruption leaves it in the trash.
        """
        return self._remove(FORGOTTEN, self.job(key, task).path.name, pace)

    def size(self, key: str, task: int, folder: str = JOBS, *, pace: Pace) -> int:
        """Give the bytes on the disk of a job's folder; looks at every file in it."""
        return measure(self.root, folder, self.job(key, task).path.name, pace)

    def _discard(self, name: str) -> None:
        obstacles = self._remove(JOBS, name, self._count)
        if obstacles:
            raise SpoolUnusable(f"{obstacles[0].path} can't be removed: {obstacles[0].reason}")

    def _remove(self, folder: str, name: str, pace: Pace) -> list[Obstacle]:
        gone = f"{name}.{secrets.token_hex(4)}"
        if not move(self.root, name, folder, TRASH, gone):
            return []
        with opened(self.root, TRASH) as (trash,):
            removal = Removal(trash, str(self.root / TRASH), pace)
            removal.remove(gone)
            return removal.obstacles

    def empty_trash(self, pace: Pace | None = None) -> tuple[int, list[Obstacle]]:
        """Finish what interrupted removals left; give how many that were, and what still can't be removed."""
        with opened(self.root, TRASH) as (trash,):
            removal = Removal(trash, str(self.root / TRASH), pace or self._count)
            with typed(self.root / TRASH):
                left = sorted(os.listdir(trash))
            return sum(removal.remove(name) for name in left), removal.obstacles

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
