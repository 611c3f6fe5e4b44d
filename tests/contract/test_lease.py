"""Lease and records against a real server: one agent leads; what another one still tries is refused where it acts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from slurmbus_agent.lease import Lease, LeaseLost, Role
from slurmbus_agent.records import Fenced, RecordStore
from slurmbus_agent.relay import Relay
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.embedded import BusUser, EmbeddedServer, new_user_seed, public_key
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.messages import CancelAsked, Heartbeat, Record, SchedulerHealth
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


def store(bus: Bus, *, held: bool = True) -> RecordStore:
    return RecordStore(bus, SITE, lambda: held)


def record(key: str, epoch: int, state: JobState = JobState.ACCEPTED) -> Record:
    return Record(
        key=key, site=SITE, epoch=epoch, state=state, name="x", submitter="me", created_at=1.0, updated_at=1.0
    )


# ---------------------------------------------------------------------- records


def test_a_record_is_created_once(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        assert await store(bus).create(record(key, 1)) is None
        there = await store(bus).create(record(key, 2))
        assert there is not None
        assert there.epoch == 1

    server.run(test)


def test_an_older_agent_cant_change_a_record_that_a_newer_one_wrote(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        old, new = store(bus), store(bus)
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
        mine = store(bus)
        await mine.create(record(key, 1))
        unheard = msgspec.structs.replace(record(key, 1, JobState.STAGING), updated_at=2.0)
        await bus.publish(subjects.state(SITE, key, 0), codec.encode(unheard))
        await mine.write(record(key, 1, JobState.SUBMITTING))
        there = await mine.read(key)
        assert there is not None
        assert there.state is JobState.SUBMITTING

    server.run(test)


def test_taking_over_keeps_what_the_old_agent_wrote_last_and_locks_it_out(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        old, new = store(bus), store(bus)
        await old.create(record(key, 1))

        class SlowBus:
            """Lets the old agent write between the new one's look and its write, once."""

            late = True

            async def last(self, *about: Any) -> Any:
                stored = await bus.last(*about)
                if self.late:
                    self.late = False
                    cancel = CancelAsked(id=new_ulid(), at=1.0, submitter="me")
                    await old.write(msgspec.structs.replace(record(key, 1, JobState.STAGING), cancel=cancel))
                return stored

            publish = bus.publish

        new = RecordStore(SlowBus(), SITE, lambda: True)  # type: ignore[arg-type]  # as much of a bus as is used
        taken = await new.take_over(key, 0, 2, None)
        assert taken is not None
        assert (taken.epoch, taken.state) == (2, JobState.STAGING)
        assert taken.cancel is not None, "a cancel that was accepted is lost"
        with pytest.raises(Fenced):
            await old.write(record(key, 1, JobState.SUBMITTING))

    server.run(test)


def test_a_record_that_is_missing_is_rebuilt_and_a_final_one_stays_as_it_is(server: Server) -> None:
    async def test(bus: Bus) -> None:
        missing, over = new_ulid(), new_ulid()
        rebuilt = await store(bus).take_over(missing, 0, 3, record(missing, 1))
        assert rebuilt is not None
        assert rebuilt.epoch == 3
        assert await store(bus).take_over(new_ulid(), 0, 3, None) is None
        await store(bus).create(record(over, 1, JobState.CANCELLED))
        there = await store(bus).take_over(over, 0, 3, None)
        assert there is not None
        assert there.epoch == 1

    server.run(test)


def test_an_older_agent_cant_take_over_from_a_newer_one(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        await store(bus).create(record(key, 5))
        with pytest.raises(Fenced):
            await store(bus).take_over(key, 0, 4, None)

    server.run(test)


def test_a_record_that_vanished_with_its_bus_isnt_written_as_if_nothing_were(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        mine = store(bus)
        await mine.create(record(key, 1))
        await bus.api(f"STREAM.PURGE.{subjects.STATES}", {"filter": subjects.state(SITE, key, 0)})
        with pytest.raises(Fenced):
            await mine.write(record(key, 1, JobState.STAGING))

    server.run(test)


def test_without_the_lease_nothing_is_written(server: Server) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        held = True
        mine = RecordStore(bus, SITE, lambda: held)
        relay = Relay(bus, SITE, guard=lambda: held)
        await mine.create(record(key, 1))
        held = False
        tasks = [
            asyncio.create_task(mine.write(record(key, 1, JobState.STAGING))),
            asyncio.create_task(mine.create(record(new_ulid(), 1))),
            asyncio.create_task(relay.put(key, 0, 0, Stream.STDOUT, 0, b"x")),
        ]
        done, _ = await asyncio.wait(tasks, timeout=0.5)
        assert not done
        there = await mine.read(key)
        assert there is not None
        assert there.state is JobState.ACCEPTED
        assert await bus.last(subjects.LOGS, subjects.stream(SITE, key, 0, 0, Stream.STDOUT)) is None
        held = True
        await asyncio.wait_for(asyncio.gather(*tasks), 10)

    server.run(test)


# ---------------------------------------------------------------------- the lease


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


def lease_of(bus: Bus, site: str, agent_id: str, lease_seconds: float = 30.0, *, same_bus: bool = True) -> Lease:
    async def same() -> bool:
        return same_bus

    return Lease(bus, site, agent_id, heartbeats(site, agent_id, lease_seconds), same)


def test_one_agent_leads_and_the_next_takes_over_when_it_is_silent(server: Server) -> None:
    async def test(bus: Bus) -> None:
        first = lease_of(bus, "lease-a", "one", 2.0)
        second = lease_of(bus, "lease-a", "two", 2.0)
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
        lease = lease_of(bus, "lease-d", "one")
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
        first = lease_of(bus, "lease-b", "one", 600.0)
        second = lease_of(bus, "lease-b", "two", 600.0)
        await first.acquire()
        await first.release()
        await asyncio.wait_for(second.acquire(), 10)
        assert second.held

    server.run(test)


def test_a_renewal_that_was_stored_without_an_answer_doesnt_cost_the_lease(server: Server) -> None:
    async def test(bus: Bus) -> None:
        lease = lease_of(bus, "lease-c", "one")
        await lease.acquire()
        make = heartbeats("lease-c", "one", 30.0)
        await bus.publish(subjects.lease("lease-c"), codec.encode(make(lease.epoch, Role.LEADER)))
        assert not await lease.renew()
        assert await lease.renew()
        assert lease.held

    server.run(test)


async def evict(bus: Bus, site: str) -> None:
    stream = f"KV_{subjects.AGENTS_BUCKET}"
    await bus.api(f"STREAM.PURGE.{stream}", {"filter": subjects.lease(site)})


def test_an_evicted_message_costs_a_healthy_leader_nothing(server: Server) -> None:
    async def test(bus: Bus) -> None:
        leader = lease_of(bus, "lease-e", "one", 6.0)
        standby = lease_of(bus, "lease-e", "two", 6.0)
        await leader.acquire()
        waiting = asyncio.create_task(standby.acquire())
        await asyncio.sleep(0)
        while await bus.last(f"KV_{subjects.AGENTS_BUCKET}", subjects.standby("lease-e", "two")) is None:
            await asyncio.sleep(0.05)
        await evict(bus, "lease-e")
        await asyncio.wait({waiting}, timeout=1.5)
        assert not waiting.done(), "the standby took a missing message for a missing leader"
        await leader.renew()
        assert await leader.renew()
        assert leader.held
        waiting.cancel()

    server.run(test)


def test_on_another_bus_the_lease_is_void_and_epochs_go_on(server: Server) -> None:
    async def test(bus: Bus) -> None:
        leader = lease_of(bus, "lease-f", "one", same_bus=False)
        await leader.acquire(epochs=6)
        assert leader.epoch == 7
        await evict(bus, "lease-f")
        with pytest.raises(LeaseLost):
            await leader.renew()
        assert not leader.held

    server.run(test)


def test_a_zombies_write_costs_a_healthy_leader_nothing(server: Server) -> None:
    async def test(bus: Bus) -> None:
        zombie = lease_of(bus, "lease-g", "one", 1.0)
        leader = lease_of(bus, "lease-g", "two", 30.0)
        await zombie.acquire()
        await asyncio.wait_for(leader.acquire(), 10)
        with pytest.raises(LeaseLost):
            await zombie.renew()
        await zombie.release()
        assert await leader.renew()
        assert leader.held

    server.run(test)


def test_a_renewal_can_be_cancelled_at_any_moment(server: Server) -> None:
    """nats-py swallows a cancellation while it flushes; an agent that is stopped just then would never end."""

    async def test(bus: Bus) -> None:
        lease = lease_of(bus, "lease-i", "one")
        await lease.acquire()

        async def renew_for_ever() -> None:
            while True:
                await lease.renew()

        for steps in range(40):
            renewing = asyncio.create_task(renew_for_ever())
            for _ in range(steps):
                await asyncio.sleep(0)
            renewing.cancel()
            done, _ = await asyncio.wait({renewing}, timeout=10)
            assert done, f"cancelled after {steps} steps of the loop"
            assert renewing.cancelled()

    server.run(test)


def test_a_bus_that_goes_away_in_a_look_at_the_lease_is_no_error(server: Server) -> None:
    async def test(bus: Bus) -> None:
        class GoneAfterPublish:
            """Refuses a look at the lease, as a server does that was killed in between."""

            publish = bus.publish

            async def last(self, *_: Any) -> Any:
                raise BusUnreachable("gone")

        lease = lease_of(bus, "lease-h", "one")
        await lease.acquire()
        await bus.publish(
            subjects.lease("lease-h"), codec.encode(heartbeats("lease-h", "one", 30.0)(lease.epoch, Role.LEADER))
        )
        lease._bus = GoneAfterPublish()  # type: ignore[assignment]
        assert not await lease.renew()

    server.run(test)
