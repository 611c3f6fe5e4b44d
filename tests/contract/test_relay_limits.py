"""The relay's limit, its fence and its fairness, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from contract.relay_site import SITE, Place, chunks_on, relay_place
from slurmbus_agent import budgets
from slurmbus_agent.board import LiveBoard
from slurmbus_agent.events import Drain, Drained
from slurmbus_agent.follower import SpoolFollower
from slurmbus_agent.linking import JobLinks
from slurmbus_agent.relay import Relay
from slurmbus_protocol import subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.codec import MAX_CHUNK
from slurmbus_protocol.messages import Start
from slurmbus_protocol.subjects import Stream, new_ulid

LINES = b"".join(b"%099d\n" % number for number in range(10_000))
LIMIT = 100_050


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with relay_place(tmp_path_factory.mktemp("relay")) as place:
        yield place


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def evict(bus: Bus, key: str) -> None:
    subject = subjects.stream(SITE, key, 0, 0, Stream.STDOUT)
    await bus.api("STREAM.PURGE.LOGS", {"filter": subject})


def test_from_the_spool_come_the_first_bytes_the_newest_lines_and_the_end(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        job = place.job(key, Relay(bus, SITE), limit=LIMIT, content=LINES)
        assert await job.catch_up(0, Stream.STDOUT, 50_000)
        assert [(chunk.offset, len(chunk.data)) for chunk in await chunks_on(bus, key)] == [(0, 50_000)]
        assert await job.catch_up(0, Stream.STDOUT, 500_050)
        _, rest, sample = await chunks_on(bus, key)
        assert (rest.offset, rest.offset + len(rest.data), rest.skipped) == (50_000, LIMIT, 0)
        assert sample.data == LINES[496_000:500_000], "whole lines, and not more than 4 KiB"
        assert (sample.offset, sample.skipped) == (496_000, 496_000 - LIMIT)
        assert not await job.catch_up(0, Stream.STDOUT, 700_000), "the next sample isn't due yet"
        assert await job.catch_up(0, Stream.STDOUT, len(LINES), ended=True)
        last = (await chunks_on(bus, key))[3:]
        assert [chunk.offset - chunk.skipped for chunk in last] == [500_000]
        assert LINES.endswith(last[0].data)
        assert len(last[0].data) == budgets.LAST_BYTES // 100 * 100
        assert not await job.catch_up(0, Stream.STDOUT, len(LINES), ended=True)

    place.run(test)


def test_the_end_has_a_last_line_that_isnt_whole(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        job = place.job(key, Relay(bus, SITE), limit=LIMIT, content=LINES + b"Segmentation fau")
        await job.catch_up(0, Stream.STDOUT, len(LINES) + 16, ended=True)
        last = (await chunks_on(bus, key))[-1]
        assert last.offset + len(last.data) == len(LINES) + 16
        assert last.data.endswith(b"\nSegmentation fau")

    place.run(test)


def test_an_agent_that_takes_over_goes_on_beyond_the_limit(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        await place.job(key, Relay(bus, SITE), limit=LIMIT, content=LINES).catch_up(0, Stream.STDOUT, 500_050)
        await place.job(key, Relay(bus, SITE), limit=LIMIT, content=LINES).catch_up(0, Stream.STDOUT, 800_000)
        chunks = await chunks_on(bus, key)
        assert chunks[-1].offset - chunks[-1].skipped == 500_000
        assert sum(len(chunk.data) for chunk in chunks) <= LIMIT + 2 * budgets.SAMPLE_BYTES

    place.run(test)


def test_what_was_evicted_is_streamed_once_more_at_most(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        relay = Relay(bus, SITE)
        job = place.job(key, relay, limit=LIMIT, content=LINES)
        await job.catch_up(0, Stream.STDOUT, 90_000)
        await evict(bus, key)
        await job.catch_up(0, Stream.STDOUT, 500_050)
        kept = await chunks_on(bus, key)
        assert kept[0].offset == 90_000, "who remembers goes on; readers fetch the beginning from the spool"
        await evict(bus, key)
        relay.reset()
        await job.catch_up(0, Stream.STDOUT, len(LINES), ended=True)
        again = await chunks_on(bus, key)
        assert again[0].offset == 0
        assert sum(len(chunk.data) for chunk in again) <= LIMIT + budgets.LAST_BYTES

    place.run(test)


def test_a_size_that_is_stale_doesnt_cut_off_what_was_relayed(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        relay = Relay(bus, SITE)
        job = place.job(key, relay, limit=LIMIT, content=b"what this host sees\n")
        await relay.put(key, 0, 0, Stream.STDOUT, 0, b"what this host sees\nand what the runner has sent\n")
        await job._drain(Drain(start=0))
        told, _ = job._inbox.get_nowait()
        assert isinstance(told, Drained)
        assert told.sizes == {"stdout": 49, "stderr": 0, "messages": 0}

    place.run(test)


def test_messages_have_no_limit(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        relay = Relay(bus, SITE)
        job = place.job(key, relay, limit=LIMIT, content=b"")
        (job.folder.path / "0.messages").write_bytes(LINES)
        await job.catch_up(0, Stream.MESSAGES, len(LINES), ended=True)
        assert await relay.offset(key, 0, 0, Stream.MESSAGES) == len(LINES)

    place.run(test)


def test_a_runner_is_told_the_limits_of_its_job(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key = new_ulid()
        relay = Relay(bus, SITE)
        job = place.job(key, relay, limit=LIMIT, content=LINES)
        links = JobLinks({(key, 0): job}, relay, LiveBoard())
        welcome = await links.hello(key, 0, Start(number=0, job_id=1, node="c1", nonce="n"))
        assert welcome is not None
        assert welcome.limits == {"stdout": LIMIT, "stderr": LIMIT}
        assert await links.chunk(key, 0, 0, Stream.STDOUT, 0, LINES[:MAX_CHUNK]) == MAX_CHUNK
        assert await links.chunk(key, 0, 0, Stream.STDOUT, MAX_CHUNK, LINES[MAX_CHUNK:]) == len(LINES)
        assert await relay.offset(key, 0, 0, Stream.STDOUT) < LIMIT + MAX_CHUNK, "what isn't shown is dropped"
        assert (await chunks_on(bus, key))[0].skipped == 0
        assert await links.chunk(new_ulid(), 0, 0, Stream.STDOUT, 7, b"of a job that is over") == 28

    place.run(test)


class TestFence:
    def test_nothing_is_published_without_the_lease(self, place: Place) -> None:
        async def test(bus: Bus) -> None:
            key, held = new_ulid(), True
            asked = 0

            def guard() -> bool:
                nonlocal asked
                asked += 1
                return held

            relay = Relay(bus, SITE, guard)
            await relay.put(key, 0, 0, Stream.STDOUT, 0, b"mine")
            held, before = False, asked
            putting = asyncio.create_task(relay.put(key, 0, 0, Stream.STDOUT, 4, b", too"))
            await until(lambda: asked > before + 3, "several looks at the lease")
            assert [chunk.data for chunk in await chunks_on(bus, key)] == [b"mine"]
            held = True
            assert await putting == 9
            assert [chunk.data for chunk in await chunks_on(bus, key)] == [b"mine", b", too"]

        place.run(test)

    def test_each_piece_asks_again(self, place: Place) -> None:
        async def test(bus: Bus) -> None:
            key = new_ulid()
            asked = 0

            def guard() -> bool:
                nonlocal asked
                asked += 1
                return asked <= 2

            relay = Relay(bus, SITE, guard)
            putting = asyncio.create_task(relay.put(key, 0, 0, Stream.STDOUT, 0, bytes(5 * MAX_CHUNK)))
            await until(lambda: asked > 4, "two pieces and more")
            assert not putting.done()
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
            assert len(await chunks_on(bus, key)) == 2
            assert relay.waiting == 0

        place.run(test)

    def test_who_lost_the_lease_stops_at_the_first_write_of_the_next_one(self, place: Place) -> None:
        async def test(bus: Bus) -> None:
            key, held = new_ulid(), True
            old, new = Relay(bus, SITE, lambda: held), Relay(bus, SITE)
            await old.put(key, 0, 0, Stream.STDOUT, 0, LINES[:1000])
            await new.put(key, 0, 0, Stream.STDOUT, 1000, LINES[1000:2000])
            held = False
            late = asyncio.create_task(old.put(key, 0, 0, Stream.STDOUT, 1000, LINES[1000:3000]))
            await new.put(key, 0, 0, Stream.STDOUT, 2000, LINES[2000:2500])
            held = True  # it leads again, and learns what the other one did
            assert await late == 3000
            assert b"".join(chunk.data for chunk in await chunks_on(bus, key)) == LINES[:3000]

        place.run(test)


def test_a_reset_while_a_piece_is_under_way_is_heeded(place: Place) -> None:
    async def test(bus: Bus) -> None:
        key, held = new_ulid(), True
        relay = Relay(bus, SITE, lambda: held)
        await relay.put(key, 0, 0, Stream.STDOUT, 0, LINES[:1000])
        held = False
        putting = asyncio.create_task(relay.put(key, 0, 0, Stream.STDOUT, 1000, LINES[1000:2000]))
        await asyncio.sleep(0)
        await evict(bus, key)  # another bus, on which nothing is
        relay.reset()
        held = True
        assert await putting == 0, "all of it is wanted again"
        assert await chunks_on(bus, key) == []

    place.run(test)


class SlowBus:
    """The real bus, on which large messages take until the gate is opened."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.last = bus.last
        self.gate = asyncio.Event()
        self.under_way = 0

    async def publish(self, subject: str, data: bytes, **options: Any) -> int:
        if len(data) > 2 * budgets.BULK_ABOVE:
            self.under_way += 1
            await self.gate.wait()
        return await self._bus.publish(subject, data, **options)


def test_one_jobs_flood_in_the_spool_doesnt_hold_up_the_next_job(place: Place) -> None:
    async def test(bus: Bus) -> None:
        slow = SlowBus(bus)
        relay = Relay(slow, SITE)  # type: ignore[arg-type]
        quiet = new_ulid()
        jobs = [place.job(new_ulid(), relay, limit=10**9, content=LINES) for _ in range(3)]
        jobs.append(place.job(quiet, relay, limit=10**9, content=b"a line\n"))
        following = asyncio.create_task(SpoolFollower(lambda: jobs, LiveBoard(), asyncio.Event()).run())
        await until(lambda: slow.under_way == 3, "the floods that are under way")
        while await relay.offset(quiet, 0, 0, Stream.STDOUT) < 7:
            await asyncio.sleep(0.01)
        assert not slow.gate.is_set()
        slow.gate.set()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    place.run(test)


def test_one_jobs_flood_doesnt_hold_up_the_lines_and_messages_of_others(place: Place) -> None:
    async def test(bus: Bus) -> None:
        slow = SlowBus(bus)
        relay = Relay(slow, SITE)  # type: ignore[arg-type]
        flood = [
            asyncio.create_task(relay.put(new_ulid(), 0, 0, Stream.STDOUT, 0, bytes(MAX_CHUNK))) for _ in range(20)
        ]
        await until(lambda: slow.under_way, "a flood that is under way")
        for stream in (Stream.STDERR, Stream.MESSAGES):
            await relay.put(new_ulid(), 0, 0, stream, 0, b"x" * budgets.BULK_ABOVE)
        assert slow.under_way == budgets.BULK_AT_ONCE, "the flood doesn't fill the one connection either"
        slow.gate.set()
        assert await asyncio.gather(*flood) == [MAX_CHUNK] * len(flood)

    place.run(test)
