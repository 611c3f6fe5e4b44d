"""Live use of all jobs, on its way into their records: bounded, because every record is one write to the bus."""

from __future__ import annotations

import asyncio

from slurmbus_agent import budgets
from slurmbus_agent.events import LiveSeen
from slurmbus_agent.guest.pace import Pace
from slurmbus_agent.job import Job
from slurmbus_protocol.messages import Live


class LiveBoard:
    """Keeps the newest of each job, and writes one after the other, those that wait longest first.

    Args:
        pace: how much longer everything takes than usual.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._waiting: dict[str, tuple[Job, LiveSeen]] = {}
        self._changed = asyncio.Event()

    def take(self, job: Job, start: int, live: Live) -> None:
        """Take what a job uses; it replaces what is waiting of it."""
        self._waiting[job.slurm_name] = (job, LiveSeen(start=start, live=live))
        self._changed.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            while not self._waiting:
                self._changed.clear()
                await self._changed.wait()
            job, seen = self._waiting.pop(next(iter(self._waiting)))
            job.post(seen)
            await asyncio.sleep(self._pace.stretch / budgets.LIVE_PER_SECOND)
