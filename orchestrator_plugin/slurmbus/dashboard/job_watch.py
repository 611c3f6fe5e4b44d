"""One job that a page looks at: its record and the end of its output, live."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from slurmbus.dashboard.values import record_value
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus.site import Site
from slurmbus_protocol.subjects import Stream

TAIL = 64 * 1024
"""Bytes of each stream that are shown of what is there already."""


class JobWatch:
    """Turns the events of one job into values for the page.

    Args:
        site: whose job.
        key: the job.
        task: of a job array.
    """

    def __init__(self, site: Site, key: str, task: int) -> None:
        self._site = site
        self._key = key
        self._task = task
        self._decoders: dict[tuple[int, Stream], codecs.IncrementalDecoder] = {}

    async def values(self) -> AsyncGenerator[dict[str, Any]]:
        """Give them until the job has ended and all of its output was given."""
        ends = await self._site.ends(self._key, self._task)
        after = {key: max(0, end - TAIL) for key, end in ends.items()}
        for (start, stream), offset in after.items():
            if offset:
                yield {"type": "left-out", "start": start, "stream": stream.value, "bytes": offset}
        events = self._site.follow(self._key, task=self._task, after=after)
        async with aclosing(events):
            async for event in events:
                value = self._value(event)
                if value is not None:
                    yield {**value, "job": f"{self._site.name}/{self._key}/{self._task}"}

    def _value(self, event: Event) -> dict[str, Any] | None:
        if isinstance(event, StateChanged | Finished):
            kind = "record" if isinstance(event, StateChanged) else "finished"
            return {"type": kind, "record": record_value(event.record)}
        if isinstance(event, Waiting):
            return {"type": "waiting", "problem": event.problem, "reachable": event.bus_reachable}
        if event.stream is Stream.MESSAGES:
            return None
        where = {"start": event.start, "stream": event.stream.value}
        if isinstance(event, Gap):
            return {"type": "gap", **where, "bytes": event.length, "reason": event.reason, "path": event.path}
        return {"type": "output", **where, "text": self._text(event)}

    def _text(self, event: Output) -> str:
        """Decode what may end in the middle of a character."""
        key = (event.start, event.stream)
        if key not in self._decoders:
            self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
        return self._decoders[key].decode(event.data)
