"""Moves bytes of streams to the bus, each exactly once and in order.

The next offset is read back from the bus, so an agent that was restarted, or that took over, goes on where the last
one stopped. Every publish expects the subject's last sequence: a second writer can't get in between. Nothing is
published while the lease isn't held.

A stream may have a limit. Up to it every byte is published; beyond it only samples are, whole lines with their true
offsets, which say how many bytes were left out right before them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from slurmbus_agent import budgets
from slurmbus_agent.runner.lines import newest
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, WrongSequence
from slurmbus_protocol.errors import BusFull, BusUnreachable
from slurmbus_protocol.messages import Chunk
from slurmbus_protocol.subjects import Stream

log = logging.getLogger(__name__)

StreamKey = tuple[str, int, int, Stream]


@dataclass
class _Head:
    """Where one stream stands on the bus."""

    subject: str
    stream: Stream
    offset: int | None = None
    """None when it must be read back."""
    sequence: int = 0
    sampled_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class _NotHeld(Exception):
    """Somebody else may be publishing."""


class Relay:
    """Publishes the chunks of one site's jobs.

    Args:
        bus: the connection.
        site: whose jobs.
        guard: tells whether the lease is held right now.
    """

    def __init__(self, bus: Bus, site: str, guard: Callable[[], bool] = lambda: True) -> None:
        self._bus = bus
        self._site = site
        self._guard = guard
        self._heads: dict[StreamKey, _Head] = {}
        self._resets = 0
        self._bulk = asyncio.Semaphore(budgets.BULK_AT_ONCE)
        self._reads = {stream: asyncio.Semaphore(budgets.SPOOL_READS_AT_ONCE) for stream in Stream}
        self._reads[Stream.STDERR] = self._reads[Stream.STDOUT]
        self.waiting = 0
        """Bytes that have arrived here and aren't on the bus yet."""
        self.full: set[str] = set()
        """The streams of the bus that take nothing more."""

    # ------------------------------------------------------------------ what others use

    async def offset(self, key: str, task: int, start: int, stream: Stream) -> int:
        """Give the offset of the first byte that isn't on the bus yet."""
        head = self._head(key, task, start, stream)
        async with head.lock:
            return await self._known(head)

    async def put(
        self, key: str, task: int, start: int, stream: Stream, offset: int, data: bytes, *, limit: int | None = None
    ) -> int:
        """Publish a byte range, and give the next offset that is wanted.

        Bytes that are there already are dropped; a range that leaves a gap is refused by giving the offset at which
        to go on. Of bytes beyond ``limit`` the newest lines are published at a bounded rate; the others are dropped,
        and gaps are nothing to refuse. Waits as long as the bus takes.
        """
        head = self._head(key, task, start, stream)
        size, end = len(data), offset + len(data)
        self.waiting += size
        try:
            async with head.lock:
                if limit is None or end <= limit:
                    return await self._publish(head, offset, data)
                known = await self._publish(head, offset, data[: max(0, limit - offset)])
                if known >= limit:
                    known = await self._take_sample(head, offset, data, limit)
                return known if known < limit else max(known, end)
        finally:
            self.waiting -= size

    async def sample(
        self, key: str, task: int, start: int, stream: Stream, offset: int, data: bytes, *, limit: int, ended: bool
    ) -> bool:
        """Publish the newest lines of a stream that is beyond its limit, or its end; False when there are none."""
        head = self._head(key, task, start, stream)
        async with head.lock:
            before = await self._known(head)
            most = budgets.LAST_BYTES if ended else budgets.SAMPLE_BYTES
            begin, lines = newest(data, offset, before, most, ended=ended)
            return await self._leap(head, begin, lines, limit) != before

    def wants_sample(self, key: str, task: int, start: int, stream: Stream) -> bool:
        """Tell whether it is time to show the newest lines of a stream over its limit."""
        return _rested(self._head(key, task, start, stream), budgets.SAMPLE_EVERY)

    def reading(self, stream: Stream) -> AbstractAsyncContextManager[None]:
        """Take one's turn to hold a piece from the spool in memory until the bus has it."""
        return self._reads[stream]

    def forget(self, key: str, task: int) -> None:
        """Drop what is remembered of a job."""
        for name in [name for name in self._heads if name[:2] == (key, task)]:
            del self._heads[name]

    def reset(self) -> None:
        """Drop all that is remembered, because the bus isn't the same any more; it is read back when it is needed."""
        self._resets += 1
        for head in self._heads.values():
            head.offset, head.sequence = None, 0

    # ------------------------------------------------------------------ where a stream stands

    def _head(self, key: str, task: int, start: int, stream: Stream) -> _Head:
        name = (key, task, start, stream)
        head = self._heads.get(name)
        if head is None:
            head = self._heads[name] = _Head(subjects.stream(self._site, *name), stream)
        return head

    async def _known(self, head: _Head) -> int:
        while head.offset is None:  # a reset may come in between
            await self._read_back(head)
        return head.offset

    async def _read_back(self, head: _Head) -> None:
        kept_in = subjects.MESSAGES if head.stream is Stream.MESSAGES else subjects.LOGS
        resets = self._resets
        attempt = 0
        while True:
            try:
                stored = await self._bus.last(kept_in, head.subject)
                break
            except BusUnreachable:
                await asyncio.sleep(budgets.BUS_RETRY[min(attempt, len(budgets.BUS_RETRY) - 1)])
                attempt += 1
        if resets != self._resets:
            return
        if stored is None:  # nothing was published, or all of it was evicted: readers fetch that from the spool
            head.offset, head.sequence = head.offset or 0, 0
        else:
            chunk = codec.decode_as(stored.data, Chunk)
            head.offset, head.sequence = chunk.offset + len(chunk.data), stored.sequence

    # ------------------------------------------------------------------ publishing

    async def _publish(self, head: _Head, offset: int, data: bytes, *, leap_from: int | None = None) -> int:
        """Publish what of a byte range isn't on the bus yet, and give the next offset then.

        Nothing is published of a range that leaves a hole, except beyond ``leap_from``. The bus may forget what it
        had, or take something from somebody else, at any time: each piece begins where the stream stands then.
        """
        end = offset + len(data)
        attempt = 0
        while True:
            known = await self._known(head)
            leaps = leap_from is not None and known >= leap_from
            if known >= end or (known < offset and not leaps):
                return known
            begin = max(known, offset)
            piece = data[begin - offset : begin - offset + codec.MAX_CHUNK]
            try:
                await self._publish_piece(head, begin, piece, begin - known)
                attempt = 0
            except WrongSequence:  # an earlier publish whose answer was lost, another agent's, or an eviction
                await self._read_back(head)
            except _NotHeld:
                await asyncio.sleep(budgets.GUARD_AGAIN)
            except BusFull as error:
                self.full.add(head.stream)
                log.warning("%s: %s", head.subject, error)
                await asyncio.sleep(budgets.FULL_RETRY)
            except BusUnreachable:
                await asyncio.sleep(budgets.BUS_RETRY[min(attempt, len(budgets.BUS_RETRY) - 1)])
                attempt += 1

    async def _publish_piece(self, head: _Head, offset: int, piece: bytes, skipped: int) -> None:
        async with self._turn(head.stream, len(piece)):
            if not self._guard():
                raise _NotHeld
            resets = self._resets
            chunk = codec.chunk(offset, piece, skipped)
            sequence = await self._bus.publish(head.subject, chunk, expected_last=head.sequence)
            self.full.discard(head.stream)
            if resets == self._resets:
                head.offset, head.sequence = offset + len(piece), sequence

    def _turn(self, stream: Stream, size: int) -> AbstractAsyncContextManager[None]:
        """Let one job's flood delay its own bytes only: records and everybody's small pieces pass it."""
        bulk = stream is not Stream.MESSAGES and size > budgets.BULK_ABOVE
        return self._bulk if bulk else contextlib.nullcontext()

    # ------------------------------------------------------------------ beyond the limit

    async def _take_sample(self, head: _Head, offset: int, data: bytes, limit: int) -> int:
        """Publish the newest lines of what a runner sent beyond the limit, and give the next offset then."""
        known = await self._known(head)
        if not _rested(head, budgets.SAMPLE_EVERY / 2):  # half: the runner counts the seconds on a clock of its own
            return known
        if len(data) > budgets.SAMPLE_BYTES:  # it doesn't know limits; else it has chosen whole lines already
            offset, data = newest(data, offset, known, budgets.SAMPLE_BYTES)
        return await self._leap(head, offset, data, limit)

    async def _leap(self, head: _Head, offset: int, lines: bytes, limit: int) -> int:
        known = await self._known(head)
        if lines:
            known = await self._publish(head, offset, lines, leap_from=limit)
            head.sampled_at = asyncio.get_running_loop().time()
        return known


def _rested(head: _Head, seconds: float) -> bool:
    return asyncio.get_running_loop().time() - head.sampled_at >= seconds
