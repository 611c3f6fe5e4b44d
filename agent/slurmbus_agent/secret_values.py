"""Hands a job's secret variables to its runner: unsealed at the last moment, into a file for one start."""

from __future__ import annotations

import asyncio
import logging
import re

import msgspec

from slurmbus_agent.spool import JobDir, SpoolError
from slurmbus_protocol.messages import Record, Sealed
from slurmbus_protocol.sealing import SecretUnreadable, unseal
from slurmbus_protocol.states import JobState

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AGAIN = 2.0
"""Seconds until it is tried again when the spool is away."""


class SecretValues:
    """The secret variables of one job.

    Args:
        sealed: as they came.
        private: the agent's key.
        folder: the job's.
    """

    def __init__(self, sealed: Sealed, private: str | None, folder: JobDir) -> None:
        self._sealed = sealed
        self._private = private
        self._folder = folder
        self.provided: set[int] = set()
        """The starts for which that was done."""
        self._turn = asyncio.Lock()
        self._burned = False

    def open(self, record: Record) -> dict[str, str]:
        """Give the variables.

        Raises:
            SecretUnreadable: they can't be read by this agent, or aren't for this job.
        """
        env = unseal(self._sealed, self._private, site=record.site, key=record.key, signer=record.signer)
        for name, value in env.items():
            if not _NAME.fullmatch(name) or "\0" in value:
                raise SecretUnreadable(
                    f"the secret {name[:64]!r} can't be a variable", hint="use letters, digits and _"
                )
        return env

    async def provide(self, record: Record, start: int) -> None:
        """Put them where the runner of a start looks for them; repeated until the spool takes them.

        What can't be had any more is told to the runner in their place.
        """
        while start not in self.provided and not self._burned:
            try:
                await self._put(record, start)
            except SpoolError as error:
                log.warning("job %s: its secret values wait: %s", record.key, error)
                await asyncio.sleep(_AGAIN)

    async def _put(self, record: Record, start: int) -> None:
        async with self._turn:
            if self._burned:
                return
            try:
                content = msgspec.json.encode({"env": self.open(record)})
            except SecretUnreadable as error:
                content = msgspec.json.encode({"error": str(error)})
            await asyncio.to_thread(self._folder.put_secrets, start, content)
            self.provided.add(start)

    async def burn(self) -> None:
        """Leave nothing in the spool; the job has ended."""
        async with self._turn:
            self._burned = True
            try:
                await asyncio.to_thread(self._folder.burn_secrets)
            except SpoolError as error:
                log.warning("secret values can't be removed: %s", error)


def coming_start(record: Record) -> int | None:
    """Tell which start may be looking for secret variables, now or soon; None when none is."""
    if record.state in {JobState.SUBMITTING, JobState.PENDING}:
        return len(record.starts)
    running = record.state in {JobState.RUNNING, JobState.COMPLETING}
    if running and record.starts and record.starts[-1].ended_at is None:
        return record.starts[-1].number
    return None
