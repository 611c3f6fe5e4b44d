"""Gives what runners report on the link to their jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from slurmbus_agent.board import LiveBoard
from slurmbus_agent.events import Claimed, FactsFound, Unlinked
from slurmbus_agent.job import Job, ended_event
from slurmbus_agent.link import Welcome
from slurmbus_agent.relay import Relay
from slurmbus_agent.runner.facts import kept
from slurmbus_agent.spool import EndReport
from slurmbus_protocol.messages import Live, Start
from slurmbus_protocol.subjects import Stream

log = logging.getLogger(__name__)


class JobLinks:
    """The link's sink: each runner speaks for one start of one job.

    Args:
        jobs: the jobs of this agent by (key, task).
        relay: moves their bytes.
        board: takes what they use.
    """

    def __init__(self, jobs: Mapping[tuple[str, int], Job], relay: Relay, board: LiveBoard) -> None:
        self._board = board
        self._jobs = jobs
        self._relay = relay

    async def hello(self, key: str, task: int, start: Start) -> Welcome | None:
        """Take a runner's introduction; None for a start that another one has superseded."""
        job = self._jobs.get((key, task))
        if job is None or job.record.sealed or any(known.number > start.number for known in job.record.starts):
            return None
        job.linked = start.number
        job.post(Claimed(starts=(start,)))
        offsets = {stream.value: await self._relay.offset(key, task, start.number, stream) for stream in Stream}
        limits = {stream.value: job.limit(stream) for stream in Stream}
        return Welcome(offsets, {name: limit for name, limit in limits.items() if limit is not None})

    async def chunk(self, key: str, task: int, start: int, stream: Stream, offset: int, data: bytes) -> int:
        """Put bytes on the bus, and give the next offset that is wanted."""
        job = self._jobs.get((key, task))
        if job is None:  # it is over, and its record says how far its streams go
            return offset + len(data)
        following = await self._relay.put(key, task, start, stream, offset, data, limit=job.limit(stream))
        job.moved()
        return following

    async def started(self, key: str, task: int, start: int, started_at: float) -> None:
        """Hear that the payload runs; the claim has said so already."""

    async def ended(self, key: str, task: int, start: int, end: EndReport) -> None:
        """Take the end of a start, and come back when that is durable: the runner waits for it."""
        job = self._jobs.get((key, task))
        if job is not None:
            await job.tell(ended_event(start, end))

    async def live(self, key: str, task: int, start: int, live: Live) -> None:
        """Take what a job uses; it is written down when it is its turn."""
        job = self._jobs.get((key, task))
        if job is not None:
            self._board.take(job, start, live)

    async def facts(self, key: str, task: int, start: int, facts: Mapping[str, str]) -> None:
        """Take what the launcher has found out, and come back when that is durable."""
        job = self._jobs.get((key, task))
        if job is not None:
            await job.tell(FactsFound(start=start, facts=kept(dict(facts))))

    def lost(self, key: str, task: int, start: int) -> None:
        """Hear that a link broke; the spool is followed from now on."""
        job = self._jobs.get((key, task))
        if job is not None and job.linked == start:
            job.linked = None
            job.moved()
            job.post(Unlinked(start=start))
