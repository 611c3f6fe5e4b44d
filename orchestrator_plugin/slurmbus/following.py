"""Following one job: records, output and Pipes messages as one sequence of events.

The cursor is (start, stream, offset), never a sequence of the bus: overlaps are trimmed, holes are asked for, and a bus
that starts anew changes nothing. A job is finished when its record is final and every byte that it states was given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from slurmbus.events import Cursor, Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import ApiError, Bus, Stored
from slurmbus_protocol.errors import BadMessage, BusUnreachable, LostMessages, SiteUnreachable, SlurmbusError
from slurmbus_protocol.messages import Chunk, ReadRange, Record
from slurmbus_protocol.reading import read
from slurmbus_protocol.subjects import Stream

if TYPE_CHECKING:
    from slurmbus.site import Site

QUEUE_ITEMS = 32
"""Messages that wait for a slow caller, of 256 KiB at most each: that bounds the memory."""
LOG_PATIENCE = 60.0
"""Seconds without any agent after which log bytes that the bus no longer holds are given up; messages never are."""
READ_LENGTH = codec.MAX_CHUNK
_READ_TIMEOUT = 10.0
_RETRY = 1.0
_DRAIN_FIRST = 0.05
"""When the record is final, what is under way arrives within milliseconds."""
_DRAIN_AGAIN = 1.0
_WAITING_LONGEST = 60.0
_HEARTBEAT_TIMEOUT = 2.0
_Key = tuple[int, Stream]


class _AnotherBus:
    """The bus started anew: everything is read again from the beginning, and trimmed."""


class _Silence:
    """When to say that nothing happens: after ``patience`` seconds, then ever more rarely."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.broken()

    def broken(self) -> None:
        """Something happened."""
        self.since = time.time()
        self._interval = self._patience
        self._due = time.monotonic() + self._interval

    def said(self) -> None:
        self._interval = min(2 * self._interval, max(_WAITING_LONGEST, self._patience))
        self._due = time.monotonic() + self._interval

    @property
    def remaining(self) -> float:
        return max(0.0, self._due - time.monotonic())


class Follower:
    """Follows one job once; :meth:`events` is the only thing to use."""

    def __init__(
        self, site: Site, key: str, task: int, *, streams: bool, after: Cursor | None, patience: float
    ) -> None:
        self._site = site
        self._key = key
        self._task = task
        self._streams = streams
        self._heads: dict[_Key, int] = dict(after or {})
        self._record: Record | None = None
        self._sizes: dict[_Key, int] | None = None
        """What must be given of each stream; known when the record is final."""
        self._queue: asyncio.Queue[Stored | _AnotherBus | Exception] = asyncio.Queue(QUEUE_ITEMS)
        self._feeds: list[asyncio.Task[None]] = []
        self._silence = _Silence(patience)

    async def events(self) -> AsyncGenerator[Event]:
        """Give the events in order, ending with Finished."""
        await self._site.session.site_bus(self._site.name)
        watch = asyncio.create_task(self._watch_bus(self._site.session.bus_id))
        self._site.session.adopt(watch)
        try:
            await self._start_feeds()
            async for event in self._merged():
                if not isinstance(event, Waiting):
                    self._silence.broken()
                yield event
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._stop_feeds()

    async def _merged(self) -> AsyncGenerator[Event]:
        drain_in = _DRAIN_FIRST
        while True:
            record = self._record
            final = record is not None and record.state.is_final
            if record is not None and final and await self._complete(record):
                yield Finished(record)
                return
            pause = min(self._silence.remaining, drain_in) if final else self._silence.remaining
            try:
                async with asyncio.timeout(pause):
                    item = await self._queue.get()
            except TimeoutError:
                if final:
                    async for event in self._drain():
                        yield event
                    drain_in = _DRAIN_AGAIN
                if self._silence.remaining == 0:
                    yield await self._waiting()
                continue
            async for event in self._take(item):
                yield event

    # ------------------------------------------------------------------ what comes from the bus

    async def _start_feeds(self) -> None:
        bus = await self._site.session.site_bus(self._site.name)
        job = f"{self._key}.{self._task}"
        site = f"{subjects.PREFIX}.{self._site.name}"
        wanted = {subjects.STATES: subjects.state(self._site.name, self._key, self._task)}
        if self._streams:
            wanted[subjects.MESSAGES] = f"{site}.msg.{job}.*"
            wanted[subjects.LOGS] = f"{site}.log.{job}.>"
        self._feeds = [
            asyncio.create_task(self._feed(bus, stream, subject), name=f"{stream} of {self._key}")
            for stream, subject in wanted.items()
        ]
        for feed in self._feeds:
            self._site.session.adopt(feed)

    async def _stop_feeds(self) -> None:
        for feed in self._feeds:
            feed.cancel()
        await asyncio.gather(*self._feeds, return_exceptions=True)

    async def _feed(self, bus: Bus, stream: str, subject: str) -> None:
        try:
            async with aclosing(read(bus, stream, [subject])) as items:
                async for item in items:
                    await self._queue.put(item)
        except Exception as error:  # noqa: BLE001 - raised where the events are taken
            await self._queue.put(error)

    async def _watch_bus(self, seen: str) -> None:
        while True:
            seen = await self._site.session.another_bus(seen)
            await self._queue.put(_AnotherBus())

    async def _take(self, item: Stored | _AnotherBus | Exception) -> AsyncGenerator[Event]:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, _AnotherBus):
            await self._stop_feeds()
            await self._start_feeds()
            return
        message = codec.decode(item.data)
        if isinstance(message, Record):
            if message != self._record:
                self._record = message
                yield StateChanged(message)
        elif isinstance(message, Chunk):
            address = subjects.parse_stream(item.subject)
            async for event in self._take_chunk((address.start, address.stream), message):
                yield event

    async def _take_chunk(self, key: _Key, chunk: Chunk) -> AsyncGenerator[Event]:
        if chunk.offset > self._heads.get(key, 0):
            async for event in self._fill(key, chunk.offset):
                yield event
        head = self._heads.get(key, 0)
        data = chunk.data[head - chunk.offset :]
        if data:
            self._heads[key] = head + len(data)
            yield Output(*key, head, data)

    # ------------------------------------------------------------------ what the bus doesn't hold any more

    async def _fill(self, key: _Key, until: int) -> AsyncGenerator[Event]:
        """Give bytes that were evicted from the bus: out of the agent's spool, or as a gap."""
        silent_since: float | None = None
        while (head := self._heads.get(key, 0)) < until:
            try:
                data = await self._ask(key, head, until)
            except (SiteUnreachable, BusUnreachable) as error:
                silent_since = silent_since or time.monotonic()
                if key[1] is not Stream.MESSAGES and time.monotonic() - silent_since > LOG_PATIENCE:
                    yield self._give_up(key, head, until, str(error))
                    return
                if self._silence.remaining == 0:
                    yield await self._waiting()
                await asyncio.sleep(_RETRY)
                continue
            except SlurmbusError as error:
                if error.retryable:
                    await asyncio.sleep(_RETRY)
                    continue
                yield self._give_up(key, head, until, str(error))
                return
            silent_since = None
            if not data:
                yield self._give_up(key, head, until, "the spool doesn't hold them any more")
                return
            self._heads[key] = head + len(data)
            yield Output(*key, head, data)

    async def _ask(self, key: _Key, head: int, until: int) -> bytes:
        start, stream = key
        question = ReadRange(
            key=self._key,
            task=self._task,
            start=start,
            stream=stream,
            offset=head,
            length=min(READ_LENGTH, until - head),
        )
        answer = await self._site.ask("read", question, Chunk, _READ_TIMEOUT)
        return answer.data[head - answer.offset :][: until - head] if answer.offset <= head else b""

    def _give_up(self, key: _Key, head: int, until: int, reason: str) -> Gap:
        start, stream = key
        if stream is Stream.MESSAGES:
            raise LostMessages(
                f"{until - head:,} bytes of Pipes messages of job {self._key} are gone from the bus and the spool: "
                f"{reason}"
            )
        self._heads[key] = until
        return Gap(start, stream, head, until - head, reason)

    # ------------------------------------------------------------------ the end

    async def _complete(self, record: Record) -> bool:
        if self._sizes is None:
            try:
                self._sizes = await self._stated_sizes(record)
            except BusUnreachable:
                return False
        return not self._missing()

    async def _stated_sizes(self, record: Record) -> dict[_Key, int]:
        sizes: dict[_Key, int] = {}
        for start in record.starts if self._streams else ():
            for stream in Stream:
                key = (start.number, stream)
                # A start whose end nobody saw states no sizes; then what the bus holds is all there is.
                sizes[key] = start.sizes.get(stream, 0) if start.sizes is not None else await self._end_on_bus(key)
        return sizes

    def _missing(self) -> dict[_Key, int]:
        return {key: size for key, size in (self._sizes or {}).items() if self._heads.get(key, 0) < size}

    async def _drain(self) -> AsyncGenerator[Event]:
        """Fetch what the final record states and the bus can't give; what it can give is on its way."""
        try:
            for key, size in self._missing().items():
                if await self._end_on_bus(key) <= self._heads.get(key, 0):
                    async for event in self._fill(key, size):
                        yield event
        except BusUnreachable:
            return

    async def _end_on_bus(self, key: _Key) -> int:
        start, stream = key
        bus = await self._site.session.site_bus(self._site.name)
        subject = subjects.stream(self._site.name, self._key, self._task, start, stream)
        found = await bus.last(subjects.MESSAGES if stream is Stream.MESSAGES else subjects.LOGS, subject)
        if found is None:
            return 0
        chunk = codec.decode_as(found.data, Chunk)
        return chunk.offset + len(chunk.data)

    async def _waiting(self) -> Waiting:
        agent, reachable = None, True
        try:
            async with asyncio.timeout(_HEARTBEAT_TIMEOUT):
                agents = await self._site.heartbeats_now()
            agent = agents[0] if agents else None
        except (BusUnreachable, ApiError, TimeoutError):
            reachable = False
        except BadMessage:  # an agent that can't be understood is as good as none
            pass
        since = self._silence.since
        self._silence.said()
        return Waiting(since, self._record, agent, reachable)
