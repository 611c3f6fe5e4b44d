"""Following a job: order, overlaps, holes, the deterministic end, and what a caller sees while nothing happens."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from msgspec import structs

from contract.bus_site import JOB, BusSite, bus_site, joined, next_news, states, wait_until
from slurmbus import following
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus.testing import ScriptedAgent, ended_start
from slurmbus_protocol import reading, subjects
from slurmbus_protocol.bus import Bus, Stored
from slurmbus_protocol.codec import MAX_CHUNK
from slurmbus_protocol.errors import LostMessages
from slurmbus_protocol.messages import Record, Submit
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusSite]:
    with bus_site(tmp_path_factory.mktemp("bus")) as site:
        yield site


async def finish(agent: ScriptedAgent, key: str, **sizes: int) -> Record:
    start = ended_start(sizes={Stream(name): size for name, size in sizes.items()})
    return await agent.record(key, JobState.COMPLETED, exit_code=0, starts=(start,))


def test_a_job_from_its_submission_to_its_last_byte(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = await asyncio.to_thread(site.client.submit, JOB)
        request = await agent.request()
        assert isinstance(request, Submit)
        assert (request.key, request.job) == (key, JOB)
        events = asyncio.create_task(site.follow(key))
        await agent.record(key, JobState.ACCEPTED)
        await agent.record(key, JobState.RUNNING)
        await agent.chunk(key, Stream.STDOUT, 0, b"hello ")
        await agent.chunk(key, Stream.STDERR, 0, b"oops")
        await agent.chunk(key, Stream.STDOUT, 6, b"world")
        await agent.chunk(key, Stream.MESSAGES, 0, b"{}\n")
        final = await finish(agent, key, stdout=11, stderr=4, messages=3)
        seen = await events
        assert states(seen) == [JobState.ACCEPTED, JobState.RUNNING, JobState.COMPLETED]
        assert joined(seen, Stream.STDOUT) == b"hello world"
        assert joined(seen, Stream.STDERR) == b"oops"
        assert joined(seen, Stream.MESSAGES) == b"{}\n"
        assert seen[-1] == Finished(final)

    site.play(scenario)


def test_duplicates_and_overlaps_are_trimmed(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        for offset, data in [(0, b"abcd"), (0, b"abcd"), (2, b"cdef"), (0, b"a"), (6, b"gh"), (0, b"abcdefghij")]:
            await agent.chunk(key, Stream.STDOUT, offset, data)
        await finish(agent, key, stdout=10)
        assert joined(await site.follow(key), Stream.STDOUT) == b"abcdefghij"

    site.play(scenario)


@pytest.mark.parametrize("stream", list(Stream))
def test_a_hole_is_filled_from_the_spool(site: BusSite, stream: Stream) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        everything = bytes(range(256)) * 4096
        agent.spool[key, 0, stream] = everything
        await agent.chunk(key, stream, 0, everything[:10])
        await agent.chunk(key, stream, 700_000, everything[700_000:700_100])
        await finish(agent, key, **{stream: len(everything)})
        seen = await site.follow(key)
        assert joined(seen, stream) == everything
        assert not [event for event in seen if isinstance(event, Gap)]

    site.play(scenario)


def test_log_bytes_that_nobody_has_become_a_marked_gap(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        await agent.chunk(key, Stream.STDERR, 0, b"abc")
        await agent.chunk(key, Stream.STDERR, 10, b"klm")
        await finish(agent, key, stderr=20)
        seen = [event for event in await site.follow(key) if isinstance(event, Output | Gap)]
        where = [(type(event), event.offset, getattr(event, "length", 3)) for event in seen]
        assert where == [(Output, 0, 3), (Gap, 3, 7), (Output, 10, 3), (Gap, 13, 7)]

    site.play(scenario)


LONG = b"".join(b"%03d\n" % number for number in range(100))
SPOOL = "/scratch/spool/job"


async def publish_samples(agent: ScriptedAgent, key: str) -> None:
    """Stream 100 bytes in full, then two samples and the end: 100 to 199, 220 to 299 and 320 to 395 are left out."""
    await agent.record(key, JobState.RUNNING, spool=SPOOL)
    await agent.chunk(key, Stream.STDOUT, 0, LONG[:100])
    for skipped, begin, end in [(100, 200, 220), (80, 300, 320), (76, 396, 400)]:
        await agent.chunk(key, Stream.STDOUT, begin, LONG[begin:end], skipped=skipped)


def pieces(events: list[Event]) -> list[tuple[str, int, int]]:
    return [
        ("output", event.offset, event.offset + len(event.data))
        if isinstance(event, Output)
        else ("left out" if event.over_limit else "lost", event.offset, event.offset + event.length)
        for event in events
        if isinstance(event, Output | Gap)
    ]


@pytest.mark.parametrize(
    ("cursor", "first"),
    [
        (0, [("output", 0, 100), ("left out", 100, 200), ("output", 200, 220)]),
        (60, [("output", 60, 100), ("left out", 100, 200), ("output", 200, 220)]),
        (100, [("left out", 100, 200), ("output", 200, 220)]),
        (150, [("left out", 150, 200), ("output", 200, 220)]),
        (200, [("output", 200, 220)]),
        (210, [("output", 210, 220)]),
        (220, []),
    ],
)
def test_what_was_left_out_is_marked_and_not_asked_for(
    site: BusSite, cursor: int, first: list[tuple[str, int, int]]
) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        agent.spool[key, 0, Stream.STDOUT] = LONG
        await publish_samples(agent, key)
        await agent.record(
            key, JobState.COMPLETED, spool=SPOOL, starts=(ended_start(sizes={Stream.STDOUT: len(LONG)}),)
        )
        seen = await site.follow(key, after={(0, Stream.STDOUT): cursor})
        rest = [("left out", 220, 300), ("output", 300, 320), ("left out", 320, 396), ("output", 396, 400)]
        assert pieces(seen) == first + rest
        assert {event.path for event in seen if isinstance(event, Gap)} == {f"{SPOOL}/0.stdout"}
        assert isinstance(seen[-1], Finished)

    site.play(scenario)


def test_what_was_evicted_before_something_left_out_is_asked_for(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        agent.spool[key, 0, Stream.STDOUT] = LONG
        await agent.chunk(key, Stream.STDOUT, 300, LONG[300:320], skipped=100)
        await finish(agent, key, stdout=320)
        seen = pieces(await site.follow(key))
        assert seen == [("output", 0, 200), ("left out", 200, 300), ("output", 300, 320)]
        seen = pieces(await site.follow(key, after={(0, Stream.STDOUT): 50}))
        assert seen == [("output", 50, 200), ("left out", 200, 300), ("output", 300, 320)]

    site.play(scenario)


def test_evicted_bytes_beyond_the_limit_stay_in_the_spool(site: BusSite) -> None:
    """Samples that the bus has evicted aren't fetched one by one: there may be gigabytes between them."""

    async def scenario(agent: ScriptedAgent) -> None:
        key = await asyncio.to_thread(site.client.submit, structs.replace(JOB, stream_limit=100))
        while (await agent.request()).key != key:
            pass
        agent.spool[key, 0, Stream.STDOUT] = LONG
        await agent.record(key, JobState.RUNNING, spool=SPOOL)
        await agent.chunk(key, Stream.STDOUT, 300, LONG[300:320], skipped=10)
        start = ended_start(sizes={Stream.STDOUT: len(LONG)})
        await agent.record(key, JobState.COMPLETED, spool=SPOOL, starts=(start,))
        seen = pieces(await site.follow(key))
        assert seen[:2] == [("output", 0, 100), ("left out", 100, 290)]
        assert seen[2:] == [("left out", 290, 300), ("output", 300, 320), ("left out", 320, 400)]

    site.play(scenario)


@pytest.mark.parametrize("published", [3, 0])
def test_missing_messages_are_an_error(site: BusSite, published: int) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        if published:
            await agent.chunk(key, Stream.MESSAGES, 0, b"abc")
        await finish(agent, key, messages=9)
        with pytest.raises(LostMessages):
            await site.follow(key)

    site.play(scenario)


def test_everything_that_was_relayed_comes_before_the_end(site: BusSite) -> None:
    """The final record and 20 MiB of three streams are there before the reader begins."""

    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        count, piece = 27, b"x" * MAX_CHUNK
        for index in range(count):
            for stream in Stream:
                await agent.chunk(key, stream, index * MAX_CHUNK, piece)
        await finish(agent, key, stdout=count * MAX_CHUNK, stderr=count * MAX_CHUNK, messages=count * MAX_CHUNK)
        seen = await site.follow(key)
        for stream in Stream:
            assert len(joined(seen, stream)) == count * MAX_CHUNK
        assert isinstance(seen[-1], Finished)

    site.play(scenario)


def test_every_start_is_drained_also_one_whose_sizes_nobody_saw(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        await agent.chunk(key, Stream.STDOUT, 0, b"first", start=0)
        await agent.chunk(key, Stream.STDOUT, 0, b"second", start=1)
        died = structs.replace(ended_start(0), sizes=None)
        await agent.record(
            key, JobState.COMPLETED, starts=(died, ended_start(1, sizes={Stream.STDOUT: len(b"second")}))
        )
        seen = await site.follow(key)
        assert joined(seen, Stream.STDOUT, 0) == b"first"
        assert joined(seen, Stream.STDOUT, 1) == b"second"

    site.play(scenario)


class Gate:
    """Keeps back what one stream of the bus gives, until it is opened."""

    def __init__(self, site: BusSite, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
        self._site = site
        self._event = asyncio.Event()

        async def read(bus: Bus, stream: str, filters: list[str]) -> AsyncIterator[Stored]:
            async with aclosing(reading.read(bus, stream, filters)) as items:
                async for item in items:
                    if stream == held:
                        await self._event.wait()
                    yield item

        monkeypatch.setattr(following, "read", read)

    def open(self) -> None:
        async def set_it() -> None:
            self._event.set()

        self._site.client.connection.run(set_it())


@pytest.mark.parametrize("sizes_are_known", [True, False])
def test_what_the_bus_still_holds_is_waited_for(
    site: BusSite, monkeypatch: pytest.MonkeyPatch, sizes_are_known: bool
) -> None:
    """The final record overtakes the output, which the spool doesn't hold any more: it is neither a gap nor the end."""
    gate = Gate(site, monkeypatch, subjects.LOGS)
    key = new_ulid()

    async def publish(agent: ScriptedAgent) -> None:
        await agent.chunk(key, Stream.STDOUT, 0, b"abc")
        start = ended_start(sizes={Stream.STDOUT: 3})
        start = start if sizes_are_known else structs.replace(start, sizes=None)
        await agent.record(key, JobState.NODE_FAIL, starts=(start,))
        with site.client.follow(key) as events:
            assert isinstance(await asyncio.to_thread(next_news, events), StateChanged)
            assert await asyncio.to_thread(events.wait, 0.3) is None
            gate.open()
            rest = await asyncio.to_thread(list, events)
        assert joined(rest, Stream.STDOUT) == b"abc"
        assert [type(event) for event in rest] == [Output, Finished]

    site.play(publish)


def test_a_job_without_a_start_ends_with_its_record(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        await agent.record(key, JobState.REJECTED, reason="no such partition")
        seen = await site.follow(key)
        assert states(seen) == [JobState.REJECTED]
        assert isinstance(seen[-1], Finished)

    site.play(scenario)


@pytest.mark.parametrize("tasks", [(0, 1, 2), (1, 2), (2,)])
def test_an_array_that_ended_before_it_had_tasks_is_the_end_of_each(site: BusSite, tasks: tuple[int, ...]) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        await agent.record(key, JobState.REJECTED, reason="max_jobs")
        seen = await ends_of(site, key, tasks)
        assert {task: (record.task, record.state, record.reason) for task, record in seen.items()} == {
            task: (task, JobState.REJECTED, "max_jobs") for task in tasks
        }

    site.play(scenario)


def test_a_cancel_after_the_end_of_an_array_without_a_task_0_changes_no_task(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        for task in (1, 2):
            await agent.record(key, JobState.COMPLETED, task=task, tasks=2)
        await agent.record(key, JobState.CANCELLED)
        for task in (1, 2):  # with accounting's figures, for example
            await agent.record(key, JobState.COMPLETED, task=task, tasks=2)
        seen = await ends_of(site, key, (1, 2))
        assert {task: record.state for task, record in seen.items()} == dict.fromkeys((1, 2), JobState.COMPLETED)

    site.play(scenario)


async def ends_of(site: BusSite, key: str, tasks: tuple[int, ...]) -> dict[int, Record]:
    def collect() -> dict[int, Record]:
        with site.client.follow_tasks({key: tasks}) as events:
            return {event.task: event.event.record for event in events if isinstance(event.event, Finished)}

    return await asyncio.to_thread(collect)


def test_a_cursor_gives_only_what_is_new(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        await agent.chunk(key, Stream.STDOUT, 0, b"abcdef")
        await agent.chunk(key, Stream.STDOUT, 6, b"ghi")
        await finish(agent, key, stdout=9)
        seen = await site.follow(key, after={(0, Stream.STDOUT): 4})
        assert [event.data for event in seen if isinstance(event, Output)] == [b"ef", b"ghi"]
        seen = await site.follow(key, streams=False)
        assert [type(event).__name__ for event in seen] == ["StateChanged", "Finished"]

    site.play(scenario)


def test_silence_is_told_with_what_is_known_of_the_agent(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()

        def look() -> None:
            with site.client.follow(key, patience=0.05) as events:
                first = next(events)
                assert isinstance(first, Waiting)
                assert first.record is None
                assert first.agent is None
                assert first.bus_reachable
                asyncio.run_coroutine_threadsafe(agent.heartbeat(), loop).result()
                second = next(events)
                assert isinstance(second, Waiting)
                assert second.agent is not None
                assert second.agent.alive
                assert second.since == first.since
                assert 0 <= second.agent.age < 10
                asyncio.run_coroutine_threadsafe(finish(agent, key), loop).result()
                assert isinstance([*events][-1], Finished)

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(look)

    site.play(scenario)


def test_an_absent_agent_is_waited_for_when_messages_are_missing(
    site: BusSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs are given up after a while, because a person reads them; messages never are."""
    monkeypatch.setattr("slurmbus.spooled.LOG_PATIENCE", 0.0)
    monkeypatch.setattr("slurmbus.spooled._RETRY", 0.01)
    keys = {Stream.STDOUT: new_ulid(), Stream.MESSAGES: new_ulid()}

    async def publish(agent: ScriptedAgent) -> None:
        for stream, key in keys.items():
            await finish(agent, key, **{stream: 5})

    site.play(publish)
    assert any(isinstance(event, Gap) for event in site.client.follow(keys[Stream.STDOUT]))
    with site.client.follow(keys[Stream.MESSAGES], patience=0.05) as events:
        while not isinstance(next(events), Waiting):
            pass

        async def come_back(agent: ScriptedAgent) -> None:
            agent.spool[keys[Stream.MESSAGES], 0, Stream.MESSAGES] = b"12345"
            rest = await asyncio.to_thread(list, events)
            assert joined(rest, Stream.MESSAGES) == b"12345"

        site.play(come_back)


def test_a_slow_caller_leaves_the_rest_on_the_bus(site: BusSite) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        count = 200
        for index in range(count):
            await agent.chunk(key, Stream.STDOUT, index * MAX_CHUNK, b"y" * MAX_CHUNK)
        await finish(agent, key, stdout=count * MAX_CHUNK)
        total = await asyncio.to_thread(slowly, key)
        assert total == count * MAX_CHUNK

    def slowly(key: str) -> int:
        with site.client.follow(key) as events:
            first = next(event for event in events if isinstance(event, Output))
            session = site.client.connection.session

            async def undelivered() -> int:
                bus = await session.bus()
                answer = await bus.api(f"CONSUMER.LIST.{subjects.LOGS}")
                pending = [
                    consumer["num_pending"]
                    for consumer in answer["consumers"]
                    if key in str(consumer["config"]["filter_subjects"])
                ]
                assert len(pending) == 1
                return int(pending[0])

            counts = [-1]

            def settled() -> bool:
                counts.append(site.client.connection.run(undelivered()))
                return counts[-1] == counts[-2]

            wait_until(settled, "the reader to stop reading ahead")
            assert counts[-1] > 100
            return len(first.data) + sum(len(event.data) for event in events if isinstance(event, Output))

    site.play(scenario)


def test_an_interrupted_caller_goes_on_where_it_was(site: BusSite) -> None:
    key = new_ulid()
    waiting = threading.Event()

    async def publish(agent: ScriptedAgent) -> None:
        await agent.chunk(key, Stream.STDOUT, 0, b"abc")
        await finish(agent, key, stdout=3)

    def interrupt_then_publish() -> None:
        waiting.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        site.play(publish)

    def ask_and_wait(events: Iterator[Event]) -> None:
        waiting.set()
        next(events)

    other = threading.Thread(target=interrupt_then_publish)
    other.start()
    seen: list[Event] = []
    with site.client.follow(key, patience=60) as events:
        assert events.wait(0.01) is None
        with pytest.raises(KeyboardInterrupt):
            ask_and_wait(events)
        seen.extend(events)
    other.join()
    assert joined(seen, Stream.STDOUT) == b"abc"
    assert isinstance(seen[-1], Finished)


def test_stopping_early_leaves_nothing_behind(site: BusSite) -> None:
    async def tasks() -> int:
        return len(asyncio.all_tasks())

    connection = site.client.connection
    before = connection.run(tasks())
    for _ in range(3):
        with site.client.follow(new_ulid()) as events:
            assert events.wait(0.02) is None
        assert events.wait(1) is None
    site.client.follow(new_ulid())
    forgotten: Any = site.client.follow(new_ulid())
    assert forgotten.wait(0.02) is None
    del forgotten
    wait_until(lambda: connection.run(tasks()) <= before, "the tasks to end")
