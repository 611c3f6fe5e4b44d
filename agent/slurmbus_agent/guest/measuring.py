"""The agent's own measurements, and the pace that follows from them."""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable

from slurmbus_agent import budgets
from slurmbus_agent.guest import processes
from slurmbus_agent.guest.judging import Judgement, Use, judge
from slurmbus_agent.guest.limits import Limits
from slurmbus_agent.guest.pace import Pace
from slurmbus_agent.scheduler.base import CONTROLS, Footprint
from slurmbus_protocol.messages import SchedulerHealth


def controller_calls(health: SchedulerHealth, limits: Limits) -> int:
    """Give how many calls to the controller count against the limit.

    Not those to accounting, which another daemon answers; and submits and cancels only where somebody has set a limit:
    else they are up to the user, as with ``sbatch``, and no reason to look after the jobs less often.
    """
    left_out = {"accounting"} if limits.calls_are_limited else {"accounting", *CONTROLS}
    return sum(number for kind, number in health.calls.items() if kind not in left_out)


class Measuring:
    """Measures at each heartbeat.

    Args:
        limits: in force.
        footprint: the scheduler's.
        calls: how often the controller was called.
        stat_calls: how often the spool was looked at.
        pace: is set.
        judged: is told what follows.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        footprint: Callable[[], Footprint],
        calls: Callable[[], int],
        stat_calls: Callable[[], int],
        pace: Pace,
        judged: Callable[[Judgement], None],
    ) -> None:
        self._limits = limits
        self._footprint = footprint
        self._calls = calls
        self.stat_calls = stat_calls
        self._pace = pace
        self._judged = judged
        self._began = time.monotonic()
        self._counted: deque[tuple[float, int, int]] = deque([(self._began, 0, 0)])
        self.scheduler = Footprint()
        self._due = self._memory_due = 0.0
        self.rss = self.open_files = 0
        self.cpu_seconds = 0.0
        """Of all of the agent's processes."""
        self.judgement = Judgement()

    def look(self, *, idle: bool) -> Judgement:
        """Measure, set the pace, and say what follows; of an idle agent only now and then."""
        if not idle or time.monotonic() >= self._due:
            self._due = time.monotonic() + budgets.MEASURE_IDLE
            self._measure()
        self._judged(self.judgement)
        return self.judgement

    def _measure(self) -> None:
        self.scheduler = self._footprint()
        if time.monotonic() >= self._memory_due:
            self._memory_due = time.monotonic() + budgets.MEASURE_MEMORY
            self.rss, self.open_files = processes.resident(), processes.open_files()
        own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        alone = own.ru_utime + own.ru_stime
        self.cpu_seconds = alone + ended.ru_utime + ended.ru_stime + self.scheduler.cpu_seconds
        calls, stat_calls = self._lately()
        self.judgement = judge(
            Use(
                cpu_seconds=alone,
                memory=self.rss + self.scheduler.rss,
                calls=calls,
                stat_calls=stat_calls,
                window=budgets.CALLS_WINDOW,
                age=time.monotonic() - self._began,
            ),
            self._limits,
        )
        self._pace.stretch = self.judgement.stretch

    def _lately(self) -> tuple[int, int]:
        """Give how many calls there were in the window."""
        now = time.monotonic()
        self._counted.append((now, self._calls(), self.stat_calls()))
        while len(self._counted) > 1 and self._counted[1][0] <= now - budgets.CALLS_WINDOW:
            self._counted.popleft()
        (_, calls, looks), (_, calls_then, looks_then) = self._counted[-1], self._counted[0]
        return calls - calls_then, looks - looks_then
