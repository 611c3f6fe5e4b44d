"""Following one job: records, output and Pipes messages as one sequence of events.

The cursor is (start, stream, offset), never a sequence of the bus: overlaps are trimmed, holes are asked for, and a bus
that starts anew changes nothing. A job is finished when its record is final and every byte that it states was given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import ApiError, Stored
from slurmbus_protocol.errors import BusUnreachable, LostMessages, SiteUnreachable, SlurmbusError
from slurmbus_protocol.messages import Chunk, ReadRange, Record
from slurmbus_protocol.reading import read
from slurmbus_protocol.subjects import Stream

from slurmbus.events import AgentStatus, Cursor, Event, Finished, Gap, Output, StateChanged, Waiting

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
_NO_STREAM_YET: Final = 10059

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
        self._queue: asyncio.Queue[Stored | _AnotherBus | Exception] = asyncio.Queue(QUEUE_ITEMS)
        self._feeds: list[asyncio.Task[None]] = []
        self._silence = _Silence(patience)

    async def events(self) -> AsyncGenerator[Event]:
        """Give the events in order, ending with Finished."""
        bus_id = (await self._connected()).bus_id
        watch = asyncio.create_task(self._watch_bus(bus_id))
        self._start_feeds()
        try:
            while True:
                async with aclosing(self._step()) as events:
                    async for event in events:
                        if not isinstance(event, Waiting):
                            self._silence.broken()
                        yield event
                        if isinstance(event, Finished):
                            return
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._stop_feeds()
