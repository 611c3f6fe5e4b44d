"""A home with one site, its real embedded server, and a scripted agent: what the tests of the bus start from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.events import Event, Output, StateChanged, Waiting
from slurmbus.home import Home
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus.testing import ScriptedAgent
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.messages import CommandPlan, JobSpec
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import BusLimits, ensure_streams
from slurmbus_protocol.subjects import Stream

SITE = "scripted"
JOB = JobSpec(name="scripted", plan=CommandPlan(argv=("true",)))
DEADLINE = 60.0


@dataclass
class BusSite:
    home: Home
    owner: ServerOwner
    client: SiteClient

    def play(self, scenario: Callable[[ScriptedAgent], Awaitable[None]]) -> None:
        async def run() -> None:
            async with asyncio.timeout(DEADLINE), ScriptedAgent(self.home, SITE) as agent:
                await scenario(agent)

        asyncio.run(run())

    async def follow(self, key: str, **options: Any) -> list[Event]:
        """Follow to the end, in a thread as a caller would."""

        def collect() -> list[Event]:
            with self.client.follow(key, **options) as events:
                return list(events)

        return await asyncio.to_thread(collect)


@contextmanager
def bus_site(folder: Path, limits: BusLimits | None = None, further: tuple[str, ...] = ()) -> Iterator[BusSite]:
    """Start it all; ``limits`` make streams that are fuller sooner, ``further`` are more sites on this bus."""
    home = Home(folder / "slurmbus")
    for name in (SITE, *further):
        home.add_site(name)
    with ServerOwner(home) as owner:
        connection = Connection.get(ConnectionSettings.of_site(home, SITE))
        try:
            client = SiteClient(connection, SITE)
            if limits is not None:
                asyncio.run(make_streams(connection.settings, limits))
            for name in (SITE, *further):
                SiteClient(connection, name).records()  # sets the bus up
            yield BusSite(home, owner, client)
        finally:
            connection.close()


async def make_streams(settings: ConnectionSettings, limits: BusLimits) -> None:
    async with Bus(settings.bus_settings()) as bus:
        await ensure_streams(bus, limits)


def joined(events: list[Event], stream: Stream, start: int = 0) -> bytes:
    """Put a stream together, and see that every byte came where it belongs."""
    data = b""
    for event in events:
        if isinstance(event, Output) and (event.start, event.stream) == (start, stream):
            assert event.offset == len(data)
            assert event.data
            data += event.data
    return data


def states(events: list[Event]) -> list[JobState]:
    return [event.record.state for event in events if isinstance(event, StateChanged)]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.01)


def next_news(events: Iterator[Event]) -> Event:
    """Give the next event that isn't about waiting: how often that is said depends on how busy this machine is."""
    return next(event for event in events if not isinstance(event, Waiting))
