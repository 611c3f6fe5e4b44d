"""Following a job: order, overlaps, holes, the deterministic end, and what a caller sees while nothing happens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slurmbus import following
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus.home import Home
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus.testing import ScriptedAgent, ended_start
from slurmbus_protocol.errors import LostMessages
from slurmbus_protocol.messages import CommandPlan, JobSpec, Submit
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import BusLimits
from slurmbus_protocol.subjects import Stream, new_ulid

SITE = "scripted"
JOB = JobSpec(name="scripted", plan=CommandPlan(argv=("true",)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home") / "slurmbus")
    home.add_site(SITE)
    with ServerOwner(home):
        yield home


@pytest.fixture(scope="module")
def client(home: Home) -> Iterator[SiteClient]:
    connection = Connection.get(ConnectionSettings.of_site(home, SITE))
    client = SiteClient(connection, SITE)
    client.records()  # sets the bus up
    yield client
    connection.close()


def play(home: Home, scenario: Callable[[ScriptedAgent], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ScriptedAgent(home, SITE) as agent:
            await scenario(agent)

    asyncio.run(run())


async def follow(client: SiteClient, key: str, **options: Any) -> list[Event]:
    def collect() -> list[Event]:
        with client.follow(key, **options) as events:
            return list(events)

    return await asyncio.to_thread(collect)


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


def test_a_job_from_its_submission_to_its_last_byte(home: Home, client: SiteClient) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = await asyncio.to_thread(client.submit, JOB)
        request = await agent.request()
        assert isinstance(request, Submit)
        assert (request.key, request.job) == (key, JOB)
        events = asyncio.create_task(follow(client, key))
        await agent.record(key, JobState.ACCEPTED)
        await agent.record(key, JobState.RUNNING)
        await agent.chunk(key, Stream.STDOUT, 0, b"hello ")
        await agent.chunk(key, Stream.STDERR, 0, b"oops")
        await agent.chunk(key, Stream.STDOUT, 6, b"world")
        await agent.chunk(key, Stream.MESSAGES, 0, b"{}\n")
        sizes = {Stream.STDOUT: 11, Stream.STDERR: 4, Stream.MESSAGES: 3}
        final = await agent.record(key, JobState.COMPLETED, exit_code=0, starts=(ended_start(sizes=sizes),))
        seen = await events
        assert states(seen) == [JobState.ACCEPTED, JobState.RUNNING, JobState.COMPLETED]
        assert joined(seen, Stream.STDOUT) == b"hello world"
        assert joined(seen, Stream.STDERR) == b"oops"
        assert joined(seen, Stream.MESSAGES) == b"{}\n"
        assert seen[-1] == Finished(final)

    play(home, scenario)
