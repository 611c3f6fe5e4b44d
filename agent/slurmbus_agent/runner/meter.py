"""What the job uses on this node, from the job's cgroup and from /proc; the controller is never asked.

The job's processes here are those below the runner and those with the job's key in their environment (the tasks of an
srun, which slurmstepd starts). Where Slurm keeps a cgroup for the job, CPU time and memory are the kernel's own sums;
elsewhere they are sums over the processes, in which memory that several share counts for each of them.
"""

from __future__ import annotations

import os
from contextlib import suppress

from slurmbus_agent.runner.live import children_cpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT = 1 << 60
"""Above this a cgroup's limit is none: version 1 writes a number near 2**63."""


class Process:
    """One process of the job, from /proc/<pid>/stat. Source: proc(5)."""

    def __init__(self, pid: int, text: str) -> None:
        words = text.rpartition(")")[2].split()
        self.pid = pid
        self.parent = int(words[1])
        own, waited_for = words[11:13], words[13:15]
        self.cpu = sum(int(word) for word in (*own, *waited_for)) / _TICKS
        self.born = int(words[19])
        self.rss = int(words[21]) * _PAGE


class Meter:
    """Measures one start of a job.

    ``reaped_before`` is the CPU time of this process's children before the payload; ``root`` stands for / in tests.
    """

    def __init__(self, key: str, task: int, env: Mapping[str, str], reaped_before: float, root: str = "") -> None:
        self._proc = root + "/proc"
        self._root = root
        self._marks = {b"SLURMBUS_JOB_KEY=%s" % key.encode(), b"SLURMBUS_TASK=%d" % task}
        self._pid = os.getpid()
        self._known: dict[tuple[int, int], bool] = {}
        self._before: dict[int, Process] = {}
        self._gone = 0.0
        self._cpus = _cpus(env)
        self._asked = _memory_asked_for(env, self._cpus)
        self._node = env.get("SLURMD_NODENAME") or os.uname().nodename
        self._cgroups = self._find_cgroups("job_" + env.get("SLURM_JOB_ID", "?"))
        self._reaped_before = reaped_before

    def read(self, now: float) -> dict[str, Any]:
        """Measure; OSError or ValueError when that isn't possible."""
        processes = self._processes()
        cpu = self._cgroup_cpu()
        read, written = self._moved(processes)
        return {
            "at": now,
            "node": self._node,
            "cpus": self._cpus,
            "cpu_seconds": self._cpu_of(processes) if cpu is None else cpu,
            "rss": self._memory(processes),
            "processes": len(processes),
            "read_bytes": read,
            "written_bytes": written,
            "memory_limit": self._limit(),
        }

    # ------------------------------------------------------------------ processes

    def _processes(self) -> list[Process]:
        mine = {}
        user = os.getuid()
        with os.scandir(self._proc) as entries:
            for entry in entries:
                with suppress(OSError, ValueError, IndexError):  # it has just ended
                    if entry.name.isdigit() and entry.stat().st_uid == user:
                        mine[int(entry.name)] = Process(int(entry.name), self._text(entry.name, "stat"))
        known = {(process.pid, process.born): self._is_ours(process, mine) for process in mine.values()}
        self._known = known
        return [process for process in mine.values() if known[process.pid, process.born]]

    def _is_ours(self, process: Process, mine: dict[int, Process]) -> bool:
        if process.pid == self._pid:
            return False
        told = self._known.get((process.pid, process.born))
        if told is not None:
            return told
        above, steps = process.parent, 0
        while above in mine and steps < len(mine):
            if above == self._pid:
                return True
            above, steps = mine[above].parent, steps + 1
        try:
            with open(f"{self._proc}/{process.pid}/environ", "rb") as file:
                return self._marks <= set(file.read().split(b"\0"))
        except OSError:  # it doesn't let itself be looked at
            return False

    def _cpu_of(self, processes: list[Process]) -> float:
        """Sum up CPU time: of who lives, with what they waited for, and of who has ended."""
        now = {process.pid: process for process in processes}
        for pid, old in self._before.items():
            new = now.get(pid)
            if (new is None or new.born != old.born) and old.parent != self._pid and old.parent not in self._before:
                self._gone += old.cpu  # its parent, who waits for it, isn't one of ours
        self._before = now
        return self._gone + children_cpu() - self._reaped_before + sum(process.cpu for process in processes)

    def _moved(self, processes: list[Process]) -> tuple[int, int]:
        """Sum up bytes read and written by those who live, with what they waited for."""
        sums = {"rchar": 0, "wchar": 0}
        for process in processes:
            with suppress(OSError, ValueError):
                for line in self._text(str(process.pid), "io").splitlines():
                    name, _, value = line.partition(":")
                    if name in sums:
                        sums[name] += int(value)
        return sums["rchar"], sums["wchar"]

    def _text(self, *parts: str) -> str:
        with open("/".join((self._proc, *parts)), encoding="utf-8", errors="replace") as file:
            return file.read()

    # ------------------------------------------------------------------ cgroups

    def _find_cgroups(self, folder: str) -> dict[str, str]:
        """Give the job's own cgroup of each controller; version 2 has one for all, named ''. Source: cgroups(7)."""
        found = {}
        with suppress(OSError, ValueError, IndexError):
            mounts = dict(_mounts(self._text("self", "mountinfo")))
            for line in self._text("self", "cgroup").splitlines():
                _, controllers, path = line.split(":", 2)
                above, is_ours, _ = (path + "/").partition(f"/{folder}/")
                if not is_ours:
                    continue
                for controller in controllers.split(","):
                    if controller in mounts:
                        top, mounted = mounts[controller]
                        inside = above[len(top) :] if top != "/" and above.startswith(top) else above
                        found[controller] = f"{self._root}{mounted}{inside}/{folder}"
        return found

    def _cgroup_cpu(self) -> float | None:
        with suppress(OSError, ValueError, KeyError):
            return int(_first(self._cgroups["cpuacct"] + "/cpuacct.usage")) / 1e9
        with suppress(OSError, ValueError, KeyError):
            return _numbers(self._cgroups[""] + "/cpu.stat")["usage_usec"] / 1e6
        return None

    def _memory(self, processes: list[Process]) -> int:
        """Give what can't be given back: without the files that the kernel keeps in memory while there is room."""
        with suppress(OSError, ValueError, KeyError):
            numbers = _numbers(self._cgroups["memory"] + "/memory.stat")
            return numbers["total_rss"] + numbers.get("total_shmem", 0)
        with suppress(OSError, ValueError, KeyError):
            numbers = _numbers(self._cgroups[""] + "/memory.stat")
            return numbers["anon"] + numbers["shmem"]
        return sum(process.rss for process in processes)

    def _limit(self) -> int | None:
        for controller, name in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
            with suppress(OSError, ValueError, KeyError):  # "max" is no number
                limit = int(_first(f"{self._cgroups[controller]}/{name}"))
                if limit < _NO_LIMIT:
                    return limit
        return self._asked


def _mounts(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Give controller, the folder of the hierarchy that is mounted, and where. Source: proc(5), mountinfo."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        top, mounted = left.split(" ")[3:5]
        if kind == "cgroup2":
            yield "", (top, mounted)
        elif kind == "cgroup":
            for option in options.split(","):
                yield option, (top, mounted)


def _cpus(env: Mapping[str, str]) -> int:
    """Give the CPUs that the job has on this node. Source: sbatch(1), OUTPUT ENVIRONMENT VARIABLES."""
    word = env.get("SLURM_CPUS_ON_NODE", "")
    return max(1, int(word)) if word.isdigit() else os.cpu_count() or 1


def _memory_asked_for(env: Mapping[str, str], cpus: int) -> int | None:
    """Give the bytes on this node by what Slurm tells its batch scripts, in MiB; 0 is all of the node's."""
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus)):
        word = env.get(name, "")
        if word.isdigit() and int(word):
            return int(word) * times * 1024 * 1024
    return None


def _first(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.readline().strip()


def _numbers(path: str) -> dict[str, int]:
    with open(path, encoding="ascii") as file:
        return {name: int(number) for name, number in (line.split() for line in file)}
