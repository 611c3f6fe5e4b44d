"""Following jobs: records, output and Pipes messages as one sequence of events.

The cursor is (start, stream, offset), never a sequence of the bus: overlaps are trimmed, holes are asked for, and a bus
that starts anew changes nothing. A job is finished when its record is final and every byte that it states was given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from slurmbus.events import Cursor, Event, Finished, Output, StateChanged, TaskEvent, Waiting
from slurmbus.spooled import Spooled, StreamKey
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.arrays import is_end_of_all
from slurmbus_protocol.bus import ApiError, Bus, Stored
from slurmbus_protocol.errors import BusFull, BusUnreachable
from slurmbus_protocol.messages import Chunk, Record
from slurmbus_protocol.reading import read
from slurmbus_protocol.subjects import Stream, StreamAddress

if TYPE_CHECKING:
    from slurmbus.site import Site

QUEUE_ITEMS = 32
"""Messages that wait for a slow caller, of 256 KiB at most each: that bounds the memory."""
_DRAIN_FIRST = 0.05
"""When the record is final, what is under way arrives within milliseconds."""
_DRAIN_AGAIN = 1.0
_WAITING_LONGEST = 60.0
_HEARTBEAT_TIMEOUT = 2.0
_PUBLISH_TIMEOUT = 5.0


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


class _Tracker:
    """What was given of one job, and what is still to be given."""

    def __init__(
        self,
        site: Site,
        key: str,
        task: int,
        *,
        streams: bool,
        after: Cursor | None,
        waiting: Callable[[], Awaitable[Waiting | None]],
    ) -> None:
        self._site = site
        self.key = key
        self.task = task
        self._streams = streams
        self._heads: dict[StreamKey, int] = dict(after or {})
        self.record: Record | None = None
        self._sizes: dict[StreamKey, int] | None = None
        """What must be given of each stream; known when the record is final."""
        self._spooled = Spooled(site, key, task, self._heads, record=lambda: self.record, waiting=waiting)

    @property
    def is_final(self) -> bool:
        return self.record is not None and self.record.state.is_final

    def take_record(self, record: Record) -> StateChanged | None:
        """Take the record; None when it says nothing new."""
        self._site.session.outbox.seen(record)
        if record == self.record:
            return None
        self.record = record
        if not record.state.is_final:
            self._sizes = None
        return StateChanged(record)

    async def take_chunk(self, key: StreamKey, chunk: Chunk) -> AsyncGenerator[Event]:
        skipped = chunk.skipped if key[1] is not Stream.MESSAGES else 0
        async for event in self._spooled.fill(key, chunk.offset - skipped):
            yield event
        if self._heads.get(key, 0) < chunk.offset:
            yield await self._spooled.left_out(key, chunk.offset)
        head = self._heads.get(key, 0)
        data = chunk.data[head - chunk.offset :]
        if data:
            self._heads[key] = head + len(data)
            yield Output(*key, head, data)

    # ------------------------------------------------------------------ the end

    async def finished(self) -> Finished | None:
        """Give the end, when the record is final and every byte that it states was given."""
        if self.record is None or not self.record.state.is_final:
            return None
        if self._sizes is None:
            try:
                self._sizes = await self._stated_sizes(self.record)
            except BusUnreachable:
                return None
        return None if self._missing() else Finished(self.record)

    async def _stated_sizes(self, record: Record) -> dict[StreamKey, int]:
        sizes: dict[StreamKey, int] = {}
        for start in record.starts if self._streams else ():
            for stream in Stream:
                key = (start.number, stream)
                # A start whose end nobody saw states no sizes; then what the bus holds is all there is.
                sizes[key] = start.sizes.get(stream, 0) if start.sizes is not None else await self._end_on_bus(key)
        return sizes

    def _missing(self) -> dict[StreamKey, int]:
        return {key: size for key, size in (self._sizes or {}).items() if self._heads.get(key, 0) < size}

    async def drain(self) -> AsyncGenerator[Event]:
        """Fetch what the final record states and the bus can't give; what it can give is on its way."""
        try:
            for key, size in self._missing().items():
                if await self._end_on_bus(key) <= self._heads.get(key, 0):
                    async for event in self._spooled.fill(key, size):
                        yield event
        except BusUnreachable:
            return

    async def _end_on_bus(self, key: StreamKey) -> int:
        start, stream = key
        bus = await self._site.session.site_bus(self._site.name)
        subject = subjects.stream(self._site.name, self.key, self.task, start, stream)
        found = await bus.last(subjects.MESSAGES if stream is Stream.MESSAGES else subjects.LOGS, subject)
        if found is None:
            return 0
        chunk = codec.decode_as(found.data, Chunk)
        return chunk.offset + len(chunk.data)


class TasksFollower:
    """Follows many tasks once, with one set of readers; :meth:`events` is the only thing to use.

    Args:
        site: whose jobs.
        tasks: the numbers of the tasks that are followed, by the key of their array; a single job is task 0.
        streams: also give the output and the Pipes messages.
        after: bytes of each (start, stream) of a (key, task) that aren't wanted again.
        patience: seconds without any event after which a Waiting is given.
    """

    def __init__(
        self,
        site: Site,
        tasks: Mapping[str, Collection[int]],
        *,
        streams: bool,
        after: Mapping[tuple[str, int], Cursor] | None = None,
        patience: float,
    ) -> None:
        self._site = site
        self._streams = streams
        self._subjects = {key: _token(numbers) for key, numbers in tasks.items()}
        after = after or {}
        self._trackers = {
            (key, task): _Tracker(
                site, key, task, streams=streams, after=after.get((key, task)), waiting=self._waiting_when_due
            )
            for key, numbers in tasks.items()
            for task in numbers
        }
        self._ending: dict[tuple[str, int], _Tracker] = {}
        """Those whose record is final, and of which bytes are missing."""
        self._last: Record | None = None
        self._bus_is_new = False
        self._queue: asyncio.Queue[Stored | _AnotherBus | Exception] = asyncio.Queue(QUEUE_ITEMS)
        self._feeds: list[asyncio.Task[None]] = []
        self._silence = _Silence(patience)

    async def events(self) -> AsyncGenerator[TaskEvent]:
        """Give the events in order, with a Finished for each task; the last one ends it."""
        await self._site.session.site_bus(self._site.name)
        watch = asyncio.create_task(self._watch_bus(self._site.session.bus_id))
        self._site.session.adopt(watch)
        try:
            await self._start_feeds()
            async for event in self._merged():
                if not isinstance(event.event, Waiting):
                    self._silence.broken()
                yield event
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._stop_feeds()

    async def _merged(self) -> AsyncGenerator[TaskEvent]:
        drain_in = _DRAIN_FIRST
        while self._trackers:
            pause = min(self._silence.remaining, drain_in) if self._ending else self._silence.remaining
            try:
                async with asyncio.timeout(pause):
                    item = await self._queue.get()
            except TimeoutError:
                for tracker in list(self._ending.values()):
                    async for event in tracker.drain():
                        yield TaskEvent(tracker.key, tracker.task, event)
                    async for end in self._end(tracker):
                        yield end
                drain_in = _DRAIN_AGAIN if self._ending else _DRAIN_FIRST
                waiting = await self._waiting_when_due()
                if waiting is not None:
                    yield TaskEvent(*next(iter(self._trackers)), waiting)
                continue
            async for taken in self._take(item):
                yield taken

    async def _end(self, tracker: _Tracker) -> AsyncGenerator[TaskEvent]:
        name = (tracker.key, tracker.task)
        finished = await tracker.finished()
        if finished is not None:
            self._ending.pop(name, None)
            if self._trackers.pop(name, None) is not None:
                yield TaskEvent(*name, finished)
        elif tracker.is_final:
            self._ending[name] = tracker
        else:
            self._ending.pop(name, None)

    # ------------------------------------------------------------------ what comes from the bus

    async def _start_feeds(self) -> None:
        bus = await self._site.session.site_bus(self._site.name)
        site = f"{subjects.PREFIX}.{self._site.name}"
        numbers = [(key, task) for key, token in self._subjects.items() for task in _with_the_whole(token)]
        wanted = {subjects.STATES: [f"{site}.job.{key}.{task}.state" for key, task in numbers]}
        if self._streams:
            wanted[subjects.MESSAGES] = [f"{site}.msg.{key}.{task}.*" for key, task in self._subjects.items()]
            wanted[subjects.LOGS] = [f"{site}.log.{key}.{task}.>" for key, task in self._subjects.items()]
        keys = ", ".join(self._subjects)
        self._feeds = [
            asyncio.create_task(self._feed(bus, stream, filters), name=f"{stream} of {keys}")
            for stream, filters in wanted.items()
        ]
        for feed in self._feeds:
            self._site.session.adopt(feed)

    async def _stop_feeds(self) -> None:
        for feed in self._feeds:
            feed.cancel()
        await asyncio.gather(*self._feeds, return_exceptions=True)

    async def _feed(self, bus: Bus, stream: str, filters: Sequence[str]) -> None:
        try:
            async with aclosing(read(bus, stream, filters)) as items:
                async for item in items:
                    await self._queue.put(item)
        except Exception as error:  # noqa: BLE001 - raised where the events are taken
            await self._queue.put(error)

    async def _watch_bus(self, seen: str) -> None:
        while True:
            seen = await self._site.session.another_bus(seen)
            await self._queue.put(_AnotherBus())

    async def _take(self, item: Stored | _AnotherBus | Exception) -> AsyncGenerator[TaskEvent]:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, _AnotherBus):
            self._bus_is_new = True
            await self._stop_feeds()
            await self._start_feeds()
            return
        message = codec.decode(item.data)
        if isinstance(message, Record):
            async for event in self._take_record(message):
                yield event
        elif isinstance(message, Chunk):
            async for event in self._take_chunk(subjects.parse_stream(item.subject), message):
                yield event

    async def _take_record(self, record: Record) -> AsyncGenerator[TaskEvent]:
        self._bus_is_new = False
        concerned = await self._concerned(record)
        for tracker in concerned:
            self._last = record
            changed = tracker.take_record(msgspec.structs.replace(record, task=tracker.task))
            if changed is not None:
                yield TaskEvent(tracker.key, tracker.task, changed)
        for tracker in concerned:
            if tracker.is_final:
                async for end in self._end(tracker):
                    yield end

    async def _concerned(self, record: Record) -> list[_Tracker]:
        """Give the task that a record is of; when an array has ended before it had tasks, all of them."""
        own = self._trackers.get((record.key, record.task))
        found = [own] if own is not None else []
        if not is_end_of_all(record):
            return found
        others = [one for one in self._trackers.values() if one.key == record.key and one.record is None]
        others = [one for one in others if one is not own]
        # A cancel that came after the end of an array without a task 0 leaves the same record.
        known = await self._site.task_records(record.key) if others else {}
        return found + [one for one in others if one.task not in known]

    async def _take_chunk(self, address: StreamAddress, chunk: Chunk) -> AsyncGenerator[TaskEvent]:
        tracker = self._trackers.get((address.key, address.task))
        if tracker is None:
            return
        async for event in tracker.take_chunk((address.start, address.stream), chunk):
            yield TaskEvent(tracker.key, tracker.task, event)
        if tracker.is_final:
            async for end in self._end(tracker):
                yield end

    # ------------------------------------------------------------------ when nothing comes

    async def _waiting_when_due(self) -> Waiting | None:
        return await self._waiting() if self._silence.remaining == 0 else None

    async def _waiting(self) -> Waiting:
        agent, reachable, problem = None, True, ""
        try:
            async with asyncio.timeout(_HEARTBEAT_TIMEOUT):
                agents = await self._site.heartbeats_now()
            agent = agents[0] if agents else None
            problem = await self._publish_again() or self._site.session.problem
        except (BusUnreachable, ApiError) as error:
            reachable, problem = False, error.message
        except TimeoutError:
            reachable, problem = False, "no answer"
        since = self._silence.since
        self._silence.said()
        return Waiting(since, self._last, agent, reachable, problem, self._bus_is_new)

    async def _publish_again(self) -> str:
        """Publish what no agent is known to have made durable, unless the bus has it; say why that fails."""
        try:
            async with asyncio.timeout(_PUBLISH_TIMEOUT):
                for key in self._subjects:
                    await self._site.session.publish_again(self._site.name, key)
        except (BusFull, BusUnreachable) as error:
            return error.message
        except TimeoutError:  # large files: the session goes on with them
            pass
        return ""


async def follow_one(
    site: Site, key: str, task: int, *, streams: bool, after: Cursor | None, patience: float
) -> AsyncGenerator[Event]:
    """Follow one job, or one task."""
    name = (key, task)
    cursors = {name: after} if after else None
    follower = TasksFollower(site, {key: (task,)}, streams=streams, after=cursors, patience=patience)
    async with aclosing(follower.events()) as events:
        async for event in events:
            yield event.event


def _token(tasks: Collection[int]) -> str:
    """Give the subject token for some tasks: their number, or a wildcard for several."""
    return str(next(iter(tasks))) if len(tasks) == 1 else "*"


def _with_the_whole(token: str) -> tuple[str, ...]:
    """Add task 0, which tells the end of an array that never had tasks."""
    return (token,) if token in {"0", "*"} else (token, "0")
