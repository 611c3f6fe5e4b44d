"""What of the measurements is told: all of them would be a flood, since every one becomes a record on the bus."""

from __future__ import annotations

import resource
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from slurmbus_agent.runner.meter import Meter

EVERY = 10.0
"""Seconds between two measurements: each looks at all of the node's processes."""
FIRST = 0.75
"""Seconds until the first one: also a job of a second shall have a peak. The pauses double until they are that long."""
TELL_FIRST = 10.0
"""Seconds until the first one is told; what ends earlier is told with its end."""
TELL_AGAIN = 30.0
"""Seconds between the first two that are told."""
SLOWER = 1.5
TELL_SLOWEST = 900.0
"""The pause grows by this factor up to this: a day makes 100 records of 1.2 kB at most, of which the bus keeps 64."""
UNCHANGED = 4
"""Without a notable change only every fourth of these times."""
NOTABLE_PERCENT = 15.0
NOTABLE_SHARE = 0.2
NOTABLE_BYTES = 64 * 1024 * 1024


class Live:
    """Live use of one start; ``latest`` is the last measurement, ``told`` the last that was worth telling."""

    def __init__(self, key: str, task: int, env: Mapping[str, str], now: float) -> None:
        self._about = (key, task, env, children_cpu())
        self._meter: Meter | None = None
        self._begun = self._told_at = now
        self._pause = TELL_AGAIN
        self._look_after = FIRST
        self._peak = 0
        self._last: tuple[float, float] = (now, 0.0)
        self.due = now + FIRST
        self.latest: dict[str, Any] | None = None
        self.told: dict[str, Any] | None = None

    def work(self, now: float) -> bool:
        """Measure when it is time; True when there is something to tell."""
        if now < self.due:
            return False
        self._look_after = min(2 * self._look_after, EVERY)
        self.due = now + self._look_after
        try:
            self.latest = self._measured(now, last=False)
        except (OSError, ValueError):  # once more next time, if there is anything like /proc here
            return False
        if not self._is_time(now, self.latest):
            return False
        if self.told is not None:
            self._pause = min(self._pause * SLOWER, TELL_SLOWEST)
        self._told_at, self.told = now, self.latest
        return True

    def stop(self) -> None:
        """Measure no more: there is no payload."""
        self.due = float("inf")

    def finish(self, now: float) -> None:
        """Look once more, and no more then: the payload has ended, and what it used since the last look counts, too."""
        self.stop()
        _, _, env, _ = self._about
        if self._meter is None and not _has_cgroup(env):
            return  # a short job, of which the figures of its end say all
        try:
            found = self._measured(now, last=True)
        except (OSError, ValueError):
            return
        if self.latest is not None:  # what it held, and how many it were, is from the last look at it
            counted = {name: max(self.latest[name], found[name]) for name in ("cpu_seconds", "peak_rss")}
            found = {**self.latest, "at": found["at"], **counted}
        self.latest = found

    def _measured(self, now: float, *, last: bool) -> dict[str, Any]:
        if self._meter is None:
            from slurmbus_agent.runner.meter import Meter  # noqa: PLC0415 - a job of a second needs none

            self._meter = Meter(*self._about)
        found = self._meter.read_last(time.time()) if last else self._meter.read(time.time())
        before, cpu_before = self._last
        used = 0.0 if last else max(0.0, found["cpu_seconds"] - cpu_before)  # nothing runs any more
        self._last = (now, found["cpu_seconds"])
        self._peak = max(self._peak, found["rss"], found.get("peak_rss", 0))
        found["cpu_percent"] = round(100 * used / (max(0.001, now - before) * found["cpus"]), 1)
        found["cpu_seconds"] = round(found["cpu_seconds"], 2)
        found["peak_rss"] = self._peak
        return found

    def _is_time(self, now: float, found: dict[str, Any]) -> bool:
        if self.told is None:
            return now >= self._begun + TELL_FIRST
        passed = now - self._told_at
        return passed >= self._pause * UNCHANGED or (passed >= self._pause and notable(self.told, found))


def notable(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Tell whether somebody who looks would want to know."""
    grown = max(abs(new[name] - old[name]) - NOTABLE_SHARE * old[name] for name in ("rss", "peak_rss"))
    return bool(abs(new["cpu_percent"] - old["cpu_percent"]) >= NOTABLE_PERCENT or grown >= NOTABLE_BYTES)


def children_cpu() -> float:
    """Give the CPU seconds of the processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def own_cpu() -> float:
    """Give the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _has_cgroup(env: Mapping[str, str]) -> bool:
    """Tell whether Slurm keeps a cgroup for this job, without the meter, which takes some milliseconds to load."""
    with suppress(OSError), open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
        return f"/job_{env.get('SLURM_JOB_ID', '?')}/" in file.read()
    return False
