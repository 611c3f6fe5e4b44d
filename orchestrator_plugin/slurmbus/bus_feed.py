"""Keeps the picture of one bus up to date: heartbeats and records by pull consumers, and a look at the bus itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace

from slurmbus.picture import BusView, JobName, Name, Picture
from slurmbus.session import Session
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import RETRY_DELAYS, ApiError, Bus, Stored, parse_time
from slurmbus_protocol.errors import BadMessage, BusUnreachable, InvalidName, SlurmbusError
from slurmbus_protocol.messages import Heartbeat, Record
from slurmbus_protocol.reading import read

log = logging.getLogger(__name__)

LOOK_INTERVAL = 2.0
"""Seconds between two questions to the bus: they measure the round trip and show within seconds that it is lost."""
LOOK_TIMEOUT = 2.0
SWEEP_INTERVAL = 600.0
"""Seconds between two looks for jobs and sites that were forgotten: that is rare, and the bus doesn't tell."""
AGENTS_STREAM = f"KV_{subjects.AGENTS_BUCKET}"
_AGENTS = f"$KV.{subjects.AGENTS_BUCKET}.>"
_RECORDS = f"{subjects.PREFIX}.*.job.*.*.state"


class BusFeed:
    """Follows one bus; :meth:`run` goes on until it is cancelled.

    Args:
        name: what the picture calls the bus.
        settings: how to reach it.
        picture: what is kept up to date.
        changed: told the names of what has changed.
    """

    def __init__(
        self, name: str, settings: ConnectionSettings, picture: Picture, changed: Callable[[Iterable[Name]], None]
    ) -> None:
        self.name = name
        self.session = Session(settings)
        self._picture = picture
        self._changed = changed

    def expect(self, sites: tuple[str, ...]) -> None:
        """Say which sites the home knows on this bus."""
        self._changed(self._picture.set_bus(replace(self._view, sites=sites)))

    async def run(self) -> None:
        """Follow the bus for ever, also while it is away and when another one takes its place."""
        async with self.session:
            bus = await self._reach()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_looking(bus))
                while True:
                    seen = self.session.bus_id
                    readers = [
                        group.create_task(self._follow_agents(bus)),
                        group.create_task(self._follow_records(bus)),
                        group.create_task(self._sweep(bus)),
                    ]
                    await self.session.another_bus(seen)
                    for reader in readers:
                        reader.cancel()
                    await asyncio.gather(*readers, return_exceptions=True)
                    self._changed(self._picture.keep_jobs(self.name, set()))

    @property
    def _view(self) -> BusView:
        return self._picture.buses.get(self.name) or BusView(name=self.name, since=time.time())

    def _away(self, problem: str) -> None:
        view = self._view
        since = time.time() if view.reachable else view.since
        self._changed(self._picture.set_bus(replace(view, reachable=False, problem=problem, since=since)))

    async def _reach(self) -> Bus:
        attempt = 0
        while True:
            try:
                return await self.session.bus()
            except SlurmbusError as error:
                self._away(error.message)
                await asyncio.sleep(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)])
                attempt += 1

    # ------------------------------------------------------------------ the bus itself

    async def _keep_looking(self, bus: Bus) -> None:
        while True:
            try:
                await self._look(bus)
            except TimeoutError:
                bus.suspect()
                self._away("no answer")
            except (BusUnreachable, ApiError) as error:
                self._away(self.session.problem or error.message)
            await asyncio.sleep(LOOK_INTERVAL)

    async def _look(self, bus: Bus) -> None:
        began, clock = time.perf_counter(), time.time()
        async with asyncio.timeout(LOOK_TIMEOUT):
            info = await bus.api(f"STREAM.INFO.{AGENTS_STREAM}")
        took = time.perf_counter() - began
        view = self._view
        ahead = parse_time(str(info["ts"])) - (clock + took / 2)
        if abs(ahead - view.clock_ahead) < took:
            ahead = view.clock_ahead  # the difference is within what can be measured
        seen = replace(
            view,
            reachable=True,
            problem=self.session.problem,
            since=view.since if view.reachable else clock,
            round_trip=took,
            clock_ahead=ahead,
        )
        self._changed(self._picture.set_bus(seen))

    # ------------------------------------------------------------------ what is on it

    async def _follow_agents(self, bus: Bus) -> None:
        async for item in _last_and_new(bus, AGENTS_STREAM, _AGENTS):
            try:
                heartbeat = codec.decode_as(item.data, Heartbeat)
            except BadMessage as error:
                log.warning("the heartbeat on %s is left out: %s", item.subject, error)
                continue
            lease = item.subject == subjects.lease(heartbeat.site)
            at = item.time - self._view.clock_ahead
            self._changed(self._picture.take_heartbeat(self.name, heartbeat, at, lease=lease))

    async def _follow_records(self, bus: Bus) -> None:
        async for item in _last_and_new(bus, subjects.STATES, _RECORDS):
            try:
                record = codec.decode_as(item.data, Record)
            except BadMessage as error:
                log.warning("the record on %s is left out: %s", item.subject, error)
                continue
            self._changed(self._picture.take_record(self.name, record))

    async def _sweep(self, bus: Bus) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            try:
                jobs = await _subjects(bus, subjects.STATES, _RECORDS)
                agents = await _subjects(bus, AGENTS_STREAM, _AGENTS)
            except (BusUnreachable, ApiError) as error:
                log.debug("looking for forgotten jobs: %s", error)
                continue
            if jobs is not None:
                self._changed(self._picture.keep_jobs(self.name, set(_names(jobs))))
            if agents is not None:
                self._changed(self._picture.keep_agents(self.name, {subject.split(".")[2] for subject in agents}))


async def _subjects(bus: Bus, stream: str, pattern: str) -> list[str] | None:
    """Give the subjects of which a stream holds something; None when they are too many: long lists come in pages."""
    info = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
    found = info.get("state", {}).get("subjects") or {}
    return list(found) if len(found) == int(info.get("state", {}).get("num_subjects", -1)) else None


def _names(found: Iterable[str]) -> Iterable[JobName]:
    for subject in found:
        try:
            address = subjects.parse_state(subject)
        except InvalidName:
            continue
        yield JobName(address.site, address.key, address.task)


async def _last_and_new(bus: Bus, stream: str, subject: str) -> AsyncGenerator[Stored]:
    async with aclosing(read(bus, stream, [subject], history=False)) as items:
        async for item in items:
            yield item
