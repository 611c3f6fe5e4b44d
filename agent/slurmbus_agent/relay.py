"""Moves bytes of streams to the bus, each exactly once and in order.

The next offset is read back from the bus, so an agent that was restarted, or that took over, goes on where the last
one stopped. Every publish expects the subject's last sequence: a second writer can't get in between.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from slurmbus_agent import budgets
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

    offset: int | None = None
    sequence: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Relay:
    """Publishes the chunks of one site's jobs."""

    def __init__(self, bus: Bus, site: str) -> None:
        self._bus = bus
        self._site = site
        self._heads: dict[StreamKey, _Head] = {}
        self.waiting = 0
        """Bytes that have arrived here and aren't on the bus yet."""
        self.full: set[str] = set()
        """The streams of the bus that take nothing more."""

    async def offset(self, key: str, task: int, start: int, stream: Stream) -> int:
        """Give the offset of the first byte that isn't on the bus yet."""
        head = self._head(key, task, start, stream)
        async with head.lock:
            return await self._known(head, key, task, start, stream)

    async def put(self, key: str, task: int, start: int, stream: Stream, offset: int, data: bytes) -> int:
        """Publish a byte range, and give the next offset that is wanted.

        Bytes that are there already are dropped; a range that leaves a gap is refused by giving the offset at which
        to go on. Waits as long as the bus takes.
        """
        head = self._head(key, task, start, stream)
        self.waiting += len(data)
        try:
            async with head.lock:
                known = await self._known(head, key, task, start, stream)
                if offset > known:
                    return known
                data = data[known - offset :]
                while data:
                    piece, data = data[: codec.MAX_CHUNK], data[codec.MAX_CHUNK :]
                    await self._publish(head, subjects.stream(self._site, key, task, start, stream), stream, piece)
                return head.offset or 0
        finally:
            self.waiting -= len(data)

    def forget(self, key: str, task: int) -> None:
        """Drop what is remembered of a job."""
        for name in [name for name in self._heads if name[:2] == (key, task)]:
            del self._heads[name]

    def _head(self, key: str, task: int, start: int, stream: Stream) -> _Head:
        return self._heads.setdefault((key, task, start, stream), _Head())

    async def _known(self, head: _Head, key: str, task: int, start: int, stream: Stream) -> int:
        if head.offset is None:
            await self._read_back(head, subjects.stream(self._site, key, task, start, stream), stream)
        return head.offset or 0

    async def _read_back(self, head: _Head, subject: str, stream: Stream) -> None:
        kept_in = subjects.MESSAGES if stream is Stream.MESSAGES else subjects.LOGS
        attempt = 0
        while True:
            try:
                stored = await self._bus.last(kept_in, subject)
                break
            except BusUnreachable:
                await asyncio.sleep(budgets.BUS_RETRY[min(attempt, len(budgets.BUS_RETRY) - 1)])
                attempt += 1
        if stored is None:
            head.offset, head.sequence = 0, 0
            return
        chunk = codec.decode_as(stored.data, Chunk)
        head.offset, head.sequence = chunk.offset + len(chunk.data), stored.sequence

    async def _publish(self, head: _Head, subject: str, stream: Stream, piece: bytes) -> None:
        begin = head.offset or 0
        end = begin + len(piece)
        attempt = 0
        while (head.offset or 0) < end:
            at = head.offset or 0
            try:
                data = codec.chunk(at, piece[at - begin :])
                head.sequence = await self._bus.publish(subject, data, expected_last=head.sequence)
                head.offset = end
                self.full.discard(stream)
            except WrongSequence:  # an earlier publish whose answer was lost has arrived after all
                await self._read_back(head, subject, stream)
            except BusFull as error:
                self.full.add(stream)
                log.warning("%s: %s", subject, error)
                await asyncio.sleep(budgets.FULL_RETRY)
            except BusUnreachable:
                await asyncio.sleep(budgets.BUS_RETRY[min(attempt, len(budgets.BUS_RETRY) - 1)])
                attempt += 1
