"""The relay against a real server under every fault at once: what a reader puts together is what was written.

Cuts, lost acknowledgements, writes that arrive late, restarts, a second agent, reports that repeat and overlap, and
evictions are drawn at random; the faults are injected around real publishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.relay_site import SITE, Place, chunks_on, relay_place
from slurmbus_agent import budgets
from slurmbus_agent.job import Job
from slurmbus_agent.relay import Relay
from slurmbus_agent.runner.lines import newest
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, WrongSequence
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.messages import Chunk
from slurmbus_protocol.subjects import Stream, new_ulid

SAMPLE, LAST, PIECE = 120, 400, 300
ANSWER = 0.5
"""Seconds for an answer: one that a killed server took with it doesn't come at all."""


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    """Make everything small, so that a short stream meets every boundary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "BUS_RETRY", (0.001,))
        patch.setattr(budgets, "GUARD_AGAIN", 0.001)
        patch.setattr(budgets, "SAMPLE_EVERY", 0.0)
        patch.setattr(budgets, "SAMPLE_BYTES", SAMPLE)
        patch.setattr(budgets, "LAST_BYTES", LAST)
        patch.setattr(budgets, "SPOOL_READ", PIECE)
        patch.setattr(codec, "MAX_CHUNK", PIECE)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with relay_place(tmp_path_factory.mktemp("relay")) as place:
        yield place


@dataclass
class FaultyBus:
    """Passes everything on to the real bus; of each publish, the request or the answer may get lost, or be late."""

    bus: Bus
    faults: Iterator[str]
    late: list[tuple[str, bytes, dict[str, Any]]] = field(default_factory=list)

    async def publish(self, subject: str, data: bytes, **options: Any) -> int:
        fault = next(self.faults, "none")
        if fault == "request lost":
            raise BusUnreachable("injected")
        if fault == "late":
            self.late.append((subject, data, options))
            raise BusUnreachable("injected")
        sequence = await self.bus.publish(subject, data, timeout=ANSWER, **options)
        if fault == "answer lost":
            raise BusUnreachable("injected")
        return sequence

    async def last(self, stream: str, subject: str) -> Any:
        if next(self.faults, "none") == "request lost":
            raise BusUnreachable("injected")
        return await self.bus.last(stream, subject, timeout=ANSWER)

    async def deliver(self) -> None:
        """Let the publishes arrive that were given up."""
        while self.late:
            subject, data, options = self.late.pop()
            with contextlib.suppress(WrongSequence, BusUnreachable):
                await self.bus.publish(subject, data, timeout=ANSWER, **options)


class Example:
    """One stream, its file in the spool, and the agents that relay it."""

    def __init__(self, place: Place, bus: Bus, content: bytes, limit: int, faults: list[str]) -> None:
        self.bus = bus
        self.content = content
        self.limit = limit
        self.key = new_ulid()
        self.subject = subjects.stream(SITE, self.key, 0, 0, Stream.STDOUT)
        self.place = place
        self.faulty = FaultyBus(bus, iter(faults))
        self.relays = [Relay(self.faulty, SITE), Relay(self.faulty, SITE)]  # type: ignore[arg-type]

    def job(self, relay: Relay) -> Job:
        return self.place.job(self.key, relay, limit=self.limit, content=self.content)

    async def step(self, kind: str, who: int, at: int, length: int) -> None:
        relay, size = self.relays[who], len(self.content)
        match kind:
            case "report":  # a runner that doesn't know limits, or the first part of the stream
                wanted = await relay.offset(self.key, 0, 0, Stream.STDOUT)
                begin = min(size, max(0, wanted + at % 400 - 300))
                await self.put(relay, begin, self.content[begin : begin + length])
            case "sample":  # a runner that does, and whose payload has written up to here
                begin = max(self.limit, at % (size + 1) - SAMPLE)
                offset, lines = newest(self.content[begin : at % (size + 1)], begin, self.limit, SAMPLE)
                if lines:
                    await self.put(relay, offset, lines)
            case "spool":  # an agent without a link
                await self.job(relay).catch_up(0, Stream.STDOUT, at % (size + 1))
            case "both":
                await asyncio.gather(*(self.step("report", one, at, length) for one in (0, 1)))
            case "restart":
                self.relays[who] = Relay(self.faulty, SITE)  # type: ignore[arg-type]
            case "reset":
                relay.reset()
            case "evict":
                await self.bus.api("STREAM.PURGE.LOGS", {"filter": self.subject, "keep": at % 3})
            case "late":
                await self.faulty.deliver()

    async def put(self, relay: Relay, offset: int, data: bytes) -> None:
        following = await relay.put(self.key, 0, 0, Stream.STDOUT, offset, data, limit=self.limit)
        assert 0 <= following <= len(self.content)

    async def end(self) -> None:
        before = len(await self.chunks())
        await self.job(self.relays[0]).catch_up(0, Stream.STDOUT, len(self.content), ended=True)
        await self.faulty.deliver()
        assert [relay.waiting for relay in self.relays] == [0, 0]
        last = (await self.chunks())[before:][-1:]
        if last and last[0].skipped:
            begin = last[0].offset
            whole = self.content[begin - 1 : begin] == b"\n"
            assert whole or len(last[0].data) == LAST, "unless it is longer than that, the first line is whole"

    async def chunks(self) -> list[Chunk]:
        return await chunks_on(self.bus, self.key)

    async def check(self, *, evicted: bool) -> None:
        """Put the stream together as a reader does: by offset, evicted bytes from the spool, marked gaps left out."""
        assembled: dict[int, bytes] = {}
        head = 0
        previous: int | None = None if evicted else 0
        for chunk in await self.chunks():
            end = chunk.offset + len(chunk.data)
            assert chunk.data == self.content[chunk.offset : end], "a chunk stands at its true offset"
            assert previous is None or chunk.offset - chunk.skipped == previous, "chunks follow each other"
            assert not chunk.skipped or chunk.offset - chunk.skipped >= self.limit, (
                "nothing is left out below the limit"
            )
            assert chunk.offset < self.limit or len(chunk.data) <= LAST
            previous = end
            begin = chunk.offset - chunk.skipped
            if begin > head:
                assert evicted
                assembled[head] = self.content[head:begin]
                head = begin
            if end > head:
                begin = max(head, chunk.offset)
                assembled[begin] = chunk.data[begin - chunk.offset :]
                head = end
        assert head == len(self.content), "the last chunk ends where the stream does"
        in_full = b"".join(data for offset, data in sorted(assembled.items()) if offset < self.limit)
        assert in_full[: self.limit] == self.content[: self.limit]


def text(seed: int, size: int) -> bytes:
    """Lines of all lengths, some longer than a sample."""
    chance = random.Random(seed)
    data = b""
    while len(data) < size:
        data += chance.randbytes(chance.choice((0, 3, 30, 30, 30, 200, 700))).replace(b"\n", b".") + b"\n"
    return data[:size]


KINDS = ("report", "report", "report", "sample", "sample", "spool", "both", "restart", "reset", "late")
FAULTS = st.lists(st.sampled_from(("none", "none", "request lost", "answer lost", "late")), max_size=30)
NUMBERS = st.integers(0, 10_000)


def steps(kinds: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, int, int, int]]]:
    step = st.tuples(st.sampled_from(kinds), st.integers(0, 1), NUMBERS, st.integers(1, 900))
    return st.lists(step, max_size=20)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32), size=st.integers(0, 5000), limit=st.integers(1, 6000), plan=steps(KINDS), faults=FAULTS
)
def test_a_reader_puts_together_what_was_written(
    place: Place, seed: int, size: int, limit: int, plan: list[tuple[str, int, int, int]], faults: list[str]
) -> None:
    async def test(bus: Bus) -> None:
        example = Example(place, bus, text(seed, size), limit, faults)
        for step in plan:
            await example.step(*step)
        await example.end()
        await example.check(evicted=False)

    place.run(test)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 5000),
    limit=st.integers(1, 6000),
    plan=steps((*KINDS, "evict", "evict", "evict")),
    faults=FAULTS,
)
def test_also_when_the_bus_forgets_what_it_had(
    place: Place, seed: int, size: int, limit: int, plan: list[tuple[str, int, int, int]], faults: list[str]
) -> None:
    async def test(bus: Bus) -> None:
        example = Example(place, bus, text(seed, size), limit, faults)
        for step in plan:
            await example.step(*step)
        both_led = {who for _, who, _, _ in plan} == {0, 1} or "both" in {kind for kind, *_ in plan}
        if both_led or not await example.chunks():  # who takes over asks the bus
            example.relays[0].reset()
        await example.end()
        await example.check(evicted=True)

    place.run(test)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), plan=steps(("report", "both", "spool", "kill")), faults=FAULTS)
def test_also_when_the_server_is_killed(
    place: Place, seed: int, plan: list[tuple[str, int, int, int]], faults: list[str]
) -> None:
    async def test(bus: Bus) -> None:
        example = Example(place, bus, text(seed, 4000), 3000, faults)
        for kind, who, at, length in plan:
            going_on = asyncio.create_task(example.step("report", who, at, length))
            if kind == "kill":
                await asyncio.sleep(0)
                place.server.kill()
                await asyncio.to_thread(place.server.restart)
            else:
                await example.step(kind, who, at, length)
            await going_on
        await example.end()
        await example.check(evicted=False)

    place.run(test)
