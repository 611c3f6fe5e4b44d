"""Bytes of one job that the bus doesn't hold: asked for from the agent's spool, or marked as a gap."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from slurmbus.events import Gap, Output, Waiting
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.errors import BadMessage, BusUnreachable, LostMessages, SiteUnreachable, SlurmbusError
from slurmbus_protocol.messages import Chunk, ReadRange, Record, Submit
from slurmbus_protocol.subjects import Stream

if TYPE_CHECKING:
    from slurmbus.site import Site

LOG_PATIENCE = 60.0
"""Seconds without any agent after which log bytes that the bus no longer holds are given up; messages never are."""
READ_LENGTH = codec.MAX_CHUNK
_READ_TIMEOUT = 10.0
_RETRY = 1.0

StreamKey = tuple[int, Stream]
"""The start, and which of its streams."""


class Spooled:
    """Fills the holes in the streams of one job.

    Args:
        site: whose agent is asked.
        key: the job.
        task: of a job array.
        heads: up to where each stream was given; moved on here.
        record: gives the job's record as far as it is known.
        waiting: gives what to say when nothing was said for long.
    """

    def __init__(
        self,
        site: Site,
        key: str,
        task: int,
        heads: dict[StreamKey, int],
        *,
        record: Callable[[], Record | None],
        waiting: Callable[[], Awaitable[Waiting | None]],
    ) -> None:
        self._site = site
        self._key = key
        self._task = task
        self._heads = heads
        self._record = record
        self._waiting = waiting
        self._limit: int | None = None

    async def fill(self, key: StreamKey, until: int) -> AsyncGenerator[Output | Gap | Waiting]:
        """Give the bytes up to ``until``: from the spool, or as a gap.

        Raises:
            LostMessages: they are Pipes messages, and nobody has them.
        """
        silent_since: float | None = None
        while (head := self._heads.get(key, 0)) < until:
            try:
                limit = await self._streamed_in_full(key[1])
                if head >= limit:  # evicted or left out: it lies in the spool, and may be endless
                    yield await self.left_out(key, until)
                    return
                data = await self._ask(key, head, min(until, limit))
            except SlurmbusError as error:
                if isinstance(error, SiteUnreachable | BusUnreachable):
                    silent_since = silent_since or time.monotonic()
                    given_up = key[1] is not Stream.MESSAGES and time.monotonic() - silent_since > LOG_PATIENCE
                else:
                    given_up = not error.retryable
                if given_up:
                    yield self._give_up(key, until, str(error))
                    return
                waiting = await self._waiting()
                if waiting is not None:
                    yield waiting
                await asyncio.sleep(_RETRY)
                continue
            silent_since = None
            if not data:
                yield self._give_up(key, until, "the spool doesn't hold them any more")
                return
            self._heads[key] = head + len(data)
            yield Output(*key, head, data)

    async def left_out(self, key: StreamKey, until: int) -> Gap:
        """Pass over bytes that were left out because the stream is over its limit."""
        start, stream = key
        head, self._heads[key] = self._heads.get(key, 0), until
        spool = await self._folder()
        path = f"{spool}/{start}.{stream}" if spool else ""
        reason = f"over the limit of streamed output; all of it lies on the site in {path or 'the spool of the job'}"
        return Gap(start, stream, head, until - head, reason, over_limit=True, path=path)

    async def _folder(self) -> str | None:
        """Tell where the job's spool is, also when the output has overtaken the record."""
        record = self._record()
        if record is None:
            with suppress(SlurmbusError):
                record = await self._site.record(self._key, self._task)
        return record.spool if record is not None else None

    async def _streamed_in_full(self, stream: Stream) -> int:
        """Tell up to where the request wants a stream in full."""
        if stream is Stream.MESSAGES:
            return sys.maxsize
        if self._limit is None:
            bus = await self._site.session.site_bus(self._site.name)
            found = await bus.last(subjects.REQUESTS, subjects.request(self._site.name, self._key))
            if found is None:
                return sys.maxsize
            try:
                self._limit = codec.decode_as(found.data, Submit).job.stream_limit
            except BadMessage:
                self._limit = sys.maxsize
        return self._limit

    async def _ask(self, key: StreamKey, head: int, until: int) -> bytes:
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

    def _give_up(self, key: StreamKey, until: int, reason: str) -> Gap:
        start, stream = key
        head = self._heads.get(key, 0)
        if stream is Stream.MESSAGES:
            raise LostMessages(
                f"{until - head:,} bytes of Pipes messages of job {self._key} are gone from the bus and the spool: "
                f"{reason}"
            )
        self._heads[key] = until
        return Gap(start, stream, head, until - head, reason)
