"""Relay, records and lease against a real server: nothing twice, nothing lost, one writer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurmbus_agent.relay import Relay
from slurmbus_protocol import codec, reading, subjects
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.embedded import BusUser, EmbeddedServer, new_user_seed, public_key
from slurmbus_protocol.messages import Chunk
from slurmbus_protocol.streams import ensure_streams
from slurmbus_protocol.subjects import Stream, new_ulid

SITE = "site"


class Server:
    """A real server, and ways to connect to it."""

    def __init__(self, folder: Path) -> None:
        self.seed = new_user_seed()
        self.server = EmbeddedServer(folder / "bus", [BusUser("client", public_key(self.seed))])

    def run(self, test: Callable[[Bus], Awaitable[None]]) -> None:
        async def main() -> None:
            async with Bus(BusSettings((self.server.url,), self.seed)) as bus:
                await ensure_streams(bus)
                await test(bus)

        asyncio.run(main())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = Server(tmp_path_factory.mktemp("server"))
    with server.server:
        yield server


async def on_bus(bus: Bus, key: str, stream: Stream) -> bytes:
    """Read a stream back from the bus and check that no byte is there twice or missing."""
    subject = subjects.stream(SITE, key, 0, 0, stream)
    last = await bus.last(subjects.LOGS, subject)
    data = b""
    if last is None:
        return data
    async for stored in reading.read(bus, subjects.LOGS, [subject]):
        chunk = codec.decode_as(stored.data, Chunk)
        assert chunk.offset == len(data)
        data += chunk.data
        if stored.sequence == last.sequence:
            return data
    raise AssertionError


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 4000))
def test_whatever_is_reported_again_or_in_pieces_arrives_once_and_in_order(
    server: Server, seed: int, size: int
) -> None:
    chance = random.Random(seed)
    content = chance.randbytes(size)

    async def test(bus: Bus) -> None:
        key = new_ulid()
        relay = Relay(bus, SITE)
        wanted = 0
        while wanted < size:
            if chance.random() < 0.2:
                relay = Relay(bus, SITE)  # the agent was restarted, or another one took over
            begin = chance.randint(max(0, wanted - 300), min(size, wanted + 50))
            end = min(size, begin + chance.randint(1, 800))
            wanted = await relay.put(key, 0, 0, Stream.STDOUT, begin, content[begin:end])
        assert await on_bus(bus, key, Stream.STDOUT) == content

    server.run(test)


def test_two_relays_at_once_never_interleave(server: Server) -> None:
    content = random.Random(1).randbytes(50_000)

    async def push(relay: Relay, key: str) -> None:
        wanted = 0
        while wanted < len(content):
            wanted = await relay.put(key, 0, 0, Stream.STDERR, wanted, content[wanted : wanted + 999])
            await asyncio.sleep(0)

    async def test(bus: Bus) -> None:
        key = new_ulid()
        await asyncio.gather(*(push(Relay(bus, SITE), key) for _ in range(3)))
        assert await on_bus(bus, key, Stream.STDERR) == content

    server.run(test)
