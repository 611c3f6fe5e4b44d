"""Relay, records and lease against a real server: nothing twice, nothing lost, one writer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurmbus_agent.lease import Lease, LeaseLost, Role
from slurmbus_agent.records import Fenced, RecordStore
from slurmbus_agent.relay import Relay
from slurmbus_protocol import codec, reading, subjects
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.embedded import BusUser, EmbeddedServer, new_user_seed, public_key
from slurmbus_protocol.messages import Chunk, Heartbeat, Record, SchedulerHealth
from slurmbus_protocol.states import JobState
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


def record(key: str, epoch: int, state: JobState = JobState.ACCEPTED) -> Record:
    return Record(
        key=key, site=SITE, epoch=epoch, state=state, name="x", submitter="me", created_at=1.0, updated_at=1.0
    )


def test_a_record_is_created_once(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        assert await RecordStore(bus, SITE).create(record(key, 1)) is None
        there = await RecordStore(bus, SITE).create(record(key, 2))
        assert there is not None
        assert there.epoch == 1

    server.run(test)


def test_an_older_agent_cant_change_a_record_that_a_newer_one_wrote(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        old, new = RecordStore(bus, SITE), RecordStore(bus, SITE)
        await old.create(record(key, 1))
        await new.read(key)
        await new.write(record(key, 2, JobState.STAGING))
        with pytest.raises(Fenced):
            await old.write(record(key, 1, JobState.CANCELLED))
        there = await new.read(key)
        assert there is not None
        assert (there.epoch, there.state) == (2, JobState.STAGING)

    server.run(test)


def test_a_write_whose_answer_was_lost_is_gone_on_from(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        store = RecordStore(bus, SITE)
        await store.create(record(key, 1))
        unheard = msgspec.structs.replace(record(key, 1, JobState.STAGING), updated_at=2.0)
        await bus.publish(subjects.state(SITE, key, 0), codec.encode(unheard))
        await store.write(record(key, 1, JobState.SUBMITTING))
        there = await store.read(key)
        assert there is not None
        assert there.state is JobState.SUBMITTING

    server.run(test)


def heartbeats(site: str, agent_id: str, lease_seconds: float) -> Callable[[int, Role], Heartbeat]:
    def make(epoch: int, role: Role) -> Heartbeat:
        return Heartbeat(
            site=site,
            agent_id=agent_id,
            epoch=epoch,
            leader=role is Role.LEADER,
            interval=lease_seconds / 3,
            lease_seconds=lease_seconds,
            host="host",
            user="me",
            pid=1,
            version="0",
            protocol=(1, 1),
            capabilities=(),
            started_at=1.0,
            sent_at=1.0,
            scheduler=SchedulerHealth(kind="local", responding=True, since=1.0),
            released=role is Role.RELEASED,
        )

    return make


def test_one_agent_leads_and_the_next_takes_over_when_it_is_silent(server: Server) -> None:
    async def test(bus: Bus) -> None:
        first = Lease(bus, "lease-a", "one", heartbeats("lease-a", "one", 2.0))
        second = Lease(bus, "lease-a", "two", heartbeats("lease-a", "two", 2.0))
        await first.acquire()
        assert first.held
        taking = asyncio.create_task(second.acquire())
        await asyncio.wait({taking}, timeout=0.2)
        assert not taking.done()
        await asyncio.wait_for(taking, 15)
        assert second.epoch == first.epoch + 1
        assert not first.held, "the first one's lease ran out on its own clock"
        with pytest.raises(LeaseLost):
            await first.renew()

    server.run(test)


def test_a_leader_knows_the_buss_clock(server: Server) -> None:
    async def test(bus: Bus) -> None:
        lease = Lease(bus, "lease-d", "one", heartbeats("lease-d", "one", 30.0))
        assert lease.bus_time is None
        await lease.acquire()
        told = lease.bus_time
        assert told is not None
        assert abs(told - time.time()) < 3600  # this server's clock is this machine's
        while lease.bus_time == told:  # and it goes on
            await asyncio.sleep(0)

    server.run(test)


def test_a_lease_that_is_given_up_is_taken_at_once(server: Server) -> None:
    async def test(bus: Bus) -> None:
        first = Lease(bus, "lease-b", "one", heartbeats("lease-b", "one", 600.0))
        second = Lease(bus, "lease-b", "two", heartbeats("lease-b", "two", 600.0))
        await first.acquire()
        await first.release()
        await asyncio.wait_for(second.acquire(), 10)
        assert second.held

    server.run(test)


def test_a_renewal_that_was_stored_without_an_answer_doesnt_cost_the_lease(server: Server) -> None:
    async def test(bus: Bus) -> None:
        make = heartbeats("lease-c", "one", 30.0)
        lease = Lease(bus, "lease-c", "one", make)
        await lease.acquire()
        await bus.publish(subjects.lease("lease-c"), codec.encode(make(lease.epoch, Role.LEADER)))
        await lease.renew()
        await lease.renew()
        assert lease.held

    server.run(test)
