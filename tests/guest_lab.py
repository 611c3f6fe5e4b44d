"""What an agent costs its host, as the kernel counts it: for the bench and for the tests of the good guest."""

from __future__ import annotations

import json
from dataclasses import dataclass

DAYS = 30 * 86400.0

MEASURE = r"""
import json, os, pathlib, sys

def children(pid):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            if int(stat[stat.rindex(")") + 2:].split()[1]) == pid:
                found += [int(entry), *children(int(entry))]
    return found

def cpu(pid):
    # Nanoseconds on a processor; clock ticks are too coarse for a process that sleeps. Ended children come in ticks.
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    alive = sum(int(pathlib.Path(task, "schedstat").read_text().split()[0]) for task in tasks)
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    ended = sum(int(ticks) for ticks in stat[stat.rindex(")") + 2:].split()[13:15])
    return alive / 1e9 + ended / os.sysconf("SC_CLK_TCK")

def memory(pid, what):
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what + ":"))

first = int(sys.argv[1])
tree = [first, *children(first)]
print(json.dumps({
    "processes": len(tree),
    "cpu": sum(cpu(pid) for pid in tree),
    "rss": sum(memory(pid, "Rss") for pid in tree),
    "pss": sum(memory(pid, "Pss") for pid in tree),
    "files": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in tree),
    "threads": sum(len(os.listdir(f"/proc/{pid}/task")) for pid in tree),
}))
"""
"""Python for the agent's host; its argument is the agent's process. Prints the JSON of a Cost."""


@dataclass(frozen=True)
class Cost:
    """What an agent and all that it started have used and are using."""

    processes: int
    cpu: float
    rss: int
    pss: int
    files: int
    threads: int

    @classmethod
    def read(cls, text: str) -> Cost:
        return cls(**json.loads(text))


def cpu_minutes_a_month(seconds: float, within: float) -> float:
    """Give the CPU time that somebody would use in 30 days who used ``seconds`` within some time."""
    return seconds / within * DAYS / 60
