"""What the kernel says about processes. Source: proc(5)."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_STAT_UTIME = 11  # the 14th field of /proc/PID/stat, counted from after the command's name, which may hold anything


def resident(pid: int | None = None) -> int:
    """Give the resident bytes of a process (this one when none is named); 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_bytes().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * resource.getpagesize()


def cpu_seconds(pid: int) -> float:
    """Give the CPU time of a process and of those that it started and that have ended; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    times = stat[stat.rindex(b")") + 2 :].split()[_STAT_UTIME : _STAT_UTIME + 4]
    return sum(int(ticks) for ticks in times) / _TICKS


def open_files() -> int:
    """Give how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))
