"""What the job uses on this node, from the job's cgroup and from /proc; the controller is never asked.

The job's processes here are those below the runner and those with the job's key in their environment (the tasks of an
srun, which slurmstepd starts). Where Slurm keeps a cgroup for the job, CPU time and memory are the kernel's own sums
over all of the job's steps on this node; elsewhere they are sums over the processes, in which memory that several share
counts for each of them. CPU time is without the runner's own. Memory of a cgroup is with the runner's and slurmstepd's,
as it is in the limit that the kernel holds the job to.
"""

from __future__ import annotations

import os
from contextlib import suppress

from slurmbus_agent.runner.live import children_cpu, own_cpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT = 1 << 60
"""Above this a cgroup's limit is none: version 1 writes a number near 2**63."""
_LAUNCHES_STEPS = "srun"


class Process:
    """One process of the job, from /proc/<pid>/stat. Source: proc(5)."""

    def __init__(self, pid: int, text: str) -> None:
        before, _, after = text.rpartition(")")
        words = after.split()
        self.pid = pid
        self.name = before.partition("(")[2]
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
        self._files = 0
        self._steps = False
        self._cpus = _cpus(env)
        self._asked = _memory_asked_for(env, self._cpus)
        self._node = env.get("SLURMD_NODENAME") or os.uname().nodename
        self._cgroups = self._find_cgroups("job_" + env.get("SLURM_JOB_ID", "?"))
        self._reaped_before = reaped_before

    def read(self, now: float) -> dict[str, Any]:
        """Measure; OSError or ValueError when that isn't possible."""
        processes = self._processes()
        read, written = self._moved(processes)
        return {
            **self._counted(now, processes),
            "processes": len(processes),
            "read_bytes": read,
            "written_bytes": written,
        }

    def read_last(self, now: float) -> dict[str, Any]:
        """Read what still counts when all processes have ended; ``peak_rss`` is the kernel's, 0 where it has none."""
        return {**self._counted(now, []), "processes": 0, "peak_rss": self._peak()}

    def _counted(self, now: float, processes: list[Process]) -> dict[str, Any]:
        cpu = self._cgroup_cpu()
        return {
            "at": now,
            "node": self._node,
            "cpus": self._cpus,
            "cpu_seconds": self._cpu_of(processes) if cpu is None else cpu,
            "rss": self._memory(processes),
            "memory_limit": self._limit(),
            "steps": self._steps,
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
                self._steps = self._steps or process.name == _LAUNCHES_STEPS
                return True
            above, steps = mine[above].parent, steps + 1
        try:
            with open(f"{self._proc}/{process.pid}/environ", "rb") as file:
                is_marked = self._marks <= set(file.read().split(b"\0"))
        except OSError:  # it doesn't let itself be looked at
            return False
        self._steps = self._steps or is_marked
        return is_marked

    def _cpu_of(self, processes: list[Process]) -> float:
        """Sum up CPU time: of who lives, with what they waited for, and of who has ended."""
        now = {process.pid: process for process in processes}
        ended = {pid: old for pid, old in self._before.items() if pid not in now or now[pid].born != old.born}
        self._gone += sum(old.cpu for old in ended.values() if not self._is_counted_above(old, ended, now))
        self._before = now
        return self._gone + children_cpu() - self._reaped_before + sum(process.cpu for process in processes)

    def _is_counted_above(self, old: Process, ended: Mapping[int, Process], now: Mapping[int, Process]) -> bool:
        """Tell whether one of ours has waited for this ended process, if by way of others that have ended as well."""
        above, steps = old.parent, 0
        while above in ended and steps < len(ended):
            above, steps = ended[above].parent, steps + 1
        return above == self._pid or above in now

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
        """Give the job's CPU time without the runner's, and without the login shell's that it came from."""
        ours = own_cpu() + self._reaped_before
        with suppress(OSError, ValueError, KeyError):
            return max(0.0, int(_first(self._cgroups["cpuacct"] + "/cpuacct.usage")) / 1e9 - ours)
        with suppress(OSError, ValueError, KeyError):
            return max(0.0, _numbers(self._cgroups[""] + "/cpu.stat")["usage_usec"] / 1e6 - ours)
        return None

    def _memory(self, processes: list[Process]) -> int:
        """Give what can't be given back: without the files that the kernel keeps in memory while there is room."""
        with suppress(OSError, ValueError, KeyError):
            numbers = _numbers(self._cgroups["memory"] + "/memory.stat")
            shared = numbers.get("total_shmem", 0)
            self._files = max(self._files, numbers.get("total_cache", 0) - shared)
            return numbers["total_rss"] + shared
        with suppress(OSError, ValueError, KeyError):
            numbers = _numbers(self._cgroups[""] + "/memory.stat")
            self._files = max(self._files, numbers.get("file", 0) - numbers["shmem"])
            return numbers["anon"] + numbers["shmem"]
        return sum(process.rss for process in processes)

    def _peak(self) -> int:
        """Give the kernel's own peak, less the most that files were seen to take of it, which it counts as well.

        Files that are removed again between two looks stay in it. Source: the kernel's cgroup-v1/memory.rst and
        cgroup-v2.rst; version 2 has it from Linux 5.19 on.
        """
        for controller, name in (("memory", "memory.max_usage_in_bytes"), ("", "memory.peak")):
            with suppress(OSError, ValueError, KeyError):
                return max(0, int(_first(f"{self._cgroups[controller]}/{name}")) - self._files)
        return 0

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
