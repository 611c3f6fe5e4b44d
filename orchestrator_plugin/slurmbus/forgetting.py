"""Removes from the bus what agents ask to have forgotten, and what no agent can ask for.

Only the owner of the bus may remove anything. For each job, in this order: the request (with its cancels and other
controls), the record, the output, the agent's wish. An interruption leaves the wish, and the next look goes on.
Whatever is asked: nothing of an unfinished job is removed, and no request before it has been expired for a day by the
bus's clock; so a request that comes again finds its record or is refused as expired.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from slurmbus.connection import Connection
from slurmbus.session import Session
from slurmbus.snapshot import latest
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import RETRY_DELAYS, Bus, Stored, parse_time
from slurmbus_protocol.errors import BadMessage, InvalidName, SlurmbusError
from slurmbus_protocol.messages import Record, Submit
from slurmbus_protocol.reading import read
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import StateAddress

log = logging.getLogger(__name__)

DAY = 86400.0
AFTER_EXPIRY = DAY
"""Seconds since the expiry of a request before which it isn't removed: more than clocks ever differ."""
UNREADABLE = 30 * DAY
"""Seconds after which a request counts as expired that nobody can read."""
LOOK_AGAIN = 600.0
"""Seconds after which wishes that couldn't be granted are looked at again."""


class Outcome(StrEnum):
    """How a job ended, as far as it matters for how long it is kept."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"


KEPT: Mapping[Outcome, float] = {Outcome.SUCCEEDED: 7 * DAY, Outcome.FAILED: 30 * DAY, Outcome.LOST: 90 * DAY}
"""Seconds for which finished jobs are kept; the same as an agent's own settings are without a configuration."""


def outcome(state: JobState) -> Outcome:
    """Give the outcome of a final state."""
    if state is JobState.COMPLETED:
        return Outcome.SUCCEEDED
    return Outcome.LOST if state is JobState.LOST else Outcome.FAILED


@dataclass
class Wish:
    """A job that shall be forgotten."""

    job: StateAddress
    why: str
    record: Record | None = None
    kept: str = ""
    """Why it isn't forgotten after all; empty when it is, or would be."""


class BusCleaner:
    """Removes jobs from a bus, with its owner's rights.

    Args:
        bus: the connection.
        after_expiry: seconds since the expiry of a request before which it isn't removed; less is for tests only.
    """

    def __init__(self, bus: Bus, after_expiry: float = AFTER_EXPIRY) -> None:
        self._bus = bus
        self._after_expiry = after_expiry

    async def clock(self) -> float:
        """Give the bus's time."""
        return parse_time(str((await self._bus.api(f"STREAM.INFO.{subjects.FORGET}"))["ts"]))

    # ------------------------------------------------------------------ what there is to do

    async def wishes(self, site: str) -> list[Wish]:
        """Give what a site's agents have asked for and isn't done yet."""
        found, _ = await latest(self._bus, subjects.FORGET, [f"{subjects.PREFIX}.{site}.job.*.*.forget"])
        return [Wish(subjects.parse_forget(item.subject), "its agent asked for it") for item in found]

    async def strays(self, site: str, kept: Mapping[Outcome, float], *, agent_gone: bool = False) -> list[Wish]:
        """Give the finished jobs of which no agent will ask: they never got as far as the spool.

        Args:
            site: whose jobs.
            kept: seconds for which each outcome is kept; outcomes that aren't there are left alone.
            agent_gone: also all others: the site's agent will never run again.
        """
        found, now = await latest(self._bus, subjects.STATES, [f"{subjects.PREFIX}.{site}.job.*.*.state"])
        strays = []
        for item in found:
            record = codec.decode_as(item.data, Record)
            if not record.state.is_final or (record.spool is not None and not agent_gone):
                continue
            kind = outcome(record.state)
            if kind in kept and now - item.time >= kept[kind]:
                why = "its agent is gone" if record.spool is not None else "no agent has anything of it"
                strays.append(Wish(subjects.parse_state(item.subject), why, record))
        if agent_gone:
            strays += await self._never_taken(site, {subjects.parse_state(item.subject).key for item in found})
        return strays

    async def _never_taken(self, site: str, known: set[str]) -> list[Wish]:
        """Give the jobs that no agent has made a record of."""
        found, _ = await latest(self._bus, subjects.REQUESTS, [f"{subjects.PREFIX}.{site}.req.*"])
        keys = {subjects.parse_request(item.subject).key for item in found} - known
        return [Wish(StateAddress(site, key, 0), "its agent is gone and never took it") for key in sorted(keys)]

    # ------------------------------------------------------------------ doing it

    async def forget(self, wish: Wish, *, dry_run: bool = False) -> Wish:
        """Remove a job from the bus, in order; may be repeated.

        Returns:
            The wish, with why it couldn't be granted.
        """
        key, task, site = wish.job.key, wish.job.task, wish.job.site
        state = subjects.state(site, key, task)
        stored = await self._bus.last(subjects.STATES, state)
        if stored is not None:
            wish.record = codec.decode_as(stored.data, Record)
            if not wish.record.state.is_final:
                wish.kept = f"unfinished: {wish.record.state}"
                return wish
        request = subjects.request(site, key)
        stored_request = await self._bus.last(subjects.REQUESTS, request)
        wish.kept = await self._why_kept(stored_request)
        if not wish.kept and stored_request is not None and wish.record is not None and wish.record.tasks:
            wish.kept = await self._why_array_kept(site, key)
        if wish.kept or dry_run:
            return wish
        prefix = f"{subjects.PREFIX}.{site}"
        await self._purge(subjects.REQUESTS, f"{prefix}.ctl.{key}.>")
        await self._purge(subjects.REQUESTS, request)
        if await self._bus.last(subjects.REQUESTS, request) is not None:
            wish.kept = "its request came again at this moment"
            return wish
        await self._purge(subjects.STATES, state)
        await self._purge(subjects.MESSAGES, f"{prefix}.msg.{key}.{task}.>")
        await self._purge(subjects.LOGS, f"{prefix}.log.{key}.{task}.>")
        await self._purge(subjects.FORGET, subjects.forget(site, key, task))
        return wish

    async def forget_agents(self, site: str) -> None:
        """Remove the lease and the heartbeats of a site that no agent serves any more."""
        lease = subjects.lease(site)
        for subject in (lease, f"{lease}.>"):
            await self._purge(f"KV_{subjects.AGENTS_BUCKET}", subject)

    async def _why_kept(self, request: Stored | None) -> str:
        if request is None:
            return ""
        try:
            expires_at = codec.decode_as(request.data, Submit).expires_at
        except BadMessage:
            expires_at = request.time + UNREADABLE
        if await self.clock() < expires_at + self._after_expiry:
            return f"its request hasn't been expired for {self._after_expiry / 3600:.0f} hours"
        return ""

    async def _why_array_kept(self, site: str, key: str) -> str:
        """Keep a request as long as one of the tasks that it asks for is unfinished."""
        found, _ = await latest(self._bus, subjects.STATES, [f"{subjects.PREFIX}.{site}.job.{key}.*.state"])
        unfinished = [item for item in found if not codec.decode_as(item.data, Record).state.is_final]
        return f"{len(unfinished)} other tasks of its array are unfinished" if unfinished else ""

    async def _purge(self, stream: str, subject: str) -> None:
        await self._bus.api(f"STREAM.PURGE.{stream}", {"filter": subject})


@contextmanager
def granting_wishes(connection: Connection, after_expiry: float = AFTER_EXPIRY) -> Iterator[None]:
    """Forget on this connection what agents ask for, as long as the block lasts; for whoever owns the bus."""
    granting = connection.start(keep_forgetting(connection.session, after_expiry))
    try:
        yield
    finally:
        granting.cancel()


async def keep_forgetting(session: Session, after_expiry: float = AFTER_EXPIRY) -> None:
    """Grant the wishes of all sites as they come, for ever."""
    attempt = 0
    while True:
        try:
            bus = await session.bus()
            cleaner = BusCleaner(bus, after_expiry)
            async with asyncio.timeout(LOOK_AGAIN), aclosing(_wishes(bus)) as wishes:
                async for wish in wishes:
                    await cleaner.forget(wish)
                    attempt = 0
                    log.info("job %s is %s", wish.job.key, f"kept: {wish.kept}" if wish.kept else "forgotten")
        except TimeoutError:
            attempt = 0
        except SlurmbusError as error:
            log.info("forgetting finished jobs: %s; trying again", error)
            await asyncio.sleep(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)])
            attempt += 1


async def _wishes(bus: Bus) -> AsyncGenerator[Wish]:
    async with aclosing(read(bus, subjects.FORGET, [f"{subjects.PREFIX}.*.job.*.*.forget"])) as items:
        async for item in items:
            try:
                yield Wish(subjects.parse_forget(item.subject), "its agent asked for it")
            except InvalidName as error:
                log.warning("a wish to forget can't be read: %s", error)
