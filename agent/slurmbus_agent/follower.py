"""Follows jobs through the spool while their runners have no link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from slurmbus_agent import budgets
from slurmbus_agent.board import LiveBoard
from slurmbus_agent.events import FactsFound
from slurmbus_agent.guest.pace import Pace
from slurmbus_agent.job import Job
from slurmbus_agent.runner.facts import kept
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

log = logging.getLogger(__name__)

_FOLLOWED = {JobState.RUNNING, JobState.COMPLETING}


class SpoolFollower:
    """Looks at the spools of running jobs that have no link, with back-off and within the budget of reads.

    Args:
        jobs: gives all jobs of this agent.
        board: takes what they use.
        changed: is set when there is one more.
        pace: how much longer everything takes than usual.
    """

    def __init__(
        self,
        jobs: Callable[[], Collection[Job]],
        board: LiveBoard,
        changed: asyncio.Event,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._board = board
        self._changed = changed
        self._jobs = jobs
        self._due: dict[str, tuple[float, int]] = {}
        self._looking: set[str] = set()

    async def run(self) -> None:
        """Follow for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._until_there_are_jobs()
                await asyncio.sleep(budgets.SPOOL_TICK if self._due else budgets.SPOOL_TICK_LINKED)
                now = asyncio.get_running_loop().time()
                unlinked = [job for job in self._jobs() if job.linked is None and job.record.state in _FOLLOWED]
                names = {job.slurm_name for job in unlinked}
                self._due = {name: due for name, due in self._due.items() if name in names}
                for job in unlinked:
                    due, _ = self._due.setdefault(job.slurm_name, (now + budgets.SPOOL_POLL[0], 0))
                    if due > now or job.slurm_name in self._looking:
                        continue
                    self._looking.add(job.slurm_name)
                    group.create_task(self._visit(job))  # none waits for another one's bytes
                    await asyncio.sleep(1.0 / budgets.SPOOL_READS_PER_SECOND)

    async def _until_there_are_jobs(self) -> None:
        """Wait without waking up: an idle agent costs its host next to nothing."""
        while not self._jobs():
            self._due.clear()
            self._changed.clear()
            await self._changed.wait()

    async def _visit(self, job: Job) -> None:
        try:
            moved = await self._look(job)
        except SlurmbusError as error:
            log.warning("job %s: %s", job.record.key, error, extra={"job": job.record.key})
            moved = False
        finally:
            self._looking.discard(job.slurm_name)
        _, step = self._due.get(job.slurm_name, (0.0, 0))
        step = 0 if moved else min(step + 1, len(budgets.SPOOL_POLL) - 1)
        self._due[job.slurm_name] = (
            asyncio.get_running_loop().time() + budgets.SPOOL_POLL[step] * self._pace.stretch,
            step,
        )

    async def _look(self, job: Job) -> bool:
        """Relay what the runner reported durable since the last look; True when there was something."""
        if job.record.verdict is not None:
            return False
        if not job.record.starts:  # Slurm says that it runs, and its runner is just about to begin
            await job.look_for_claims()
            return False
        start = job.record.starts[-1]
        if start.ended_at is not None:
            return False
        report = await asyncio.to_thread(job.folder.report, start.number)
        if report is None:
            return False
        if report.live is not None and report.live != start.live:
            self._board.take(job, start.number, report.live)
        if report.facts and kept(report.facts) != start.facts:
            job.post(FactsFound(start=start.number, facts=kept(report.facts)))
        moved = False
        for stream in Stream:
            size = report.sizes.get(stream, 0)
            if await job.catch_up(start.number, stream, size):
                moved = True
        if report.end is not None:
            job.ended(start.number, report.end)
        return moved or report.end is not None
