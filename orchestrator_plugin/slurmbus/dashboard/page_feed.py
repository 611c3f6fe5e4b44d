"""What one open page is sent, and what it asks for, over its one WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from slurmbus.attention import attention
from slurmbus.board import Board, News
from slurmbus.dashboard.job_watch import JobWatch
from slurmbus.dashboard.partitions import PartitionsOf
from slurmbus.dashboard.values import changes_value, history_value
from slurmbus.picture import JobName
from slurmbus_protocol.errors import SlurmbusError

PULSE = 1.0
"""Seconds after which the page hears something even when nothing has changed: it then knows that we live."""
GATHER = 0.1
"""Seconds during which changes are put together into one message."""
HISTORY_INTERVAL = 1.0
ATTENTION_INTERVAL = 0.25
STEPS = {"hour": (15.0, 240), "day": (360.0, 240)}
"""What the chart may show: seconds of a bucket, and how many."""


class Watch(msgspec.Struct, frozen=True, tag="watch"):
    """Show this job, and no other any more."""

    site: str
    key: str
    task: int = 0


class Unwatch(msgspec.Struct, frozen=True, tag="unwatch"):
    """Show no job any more."""


class AskPartitions(msgspec.Struct, frozen=True, tag="partitions"):
    """Which partitions has this site?"""

    site: str


class ShowHistory(msgspec.Struct, frozen=True, tag="history"):
    """Over which time jobs are counted."""

    span: str


Wish = Watch | Unwatch | AskPartitions | ShowHistory
_wishes = msgspec.json.Decoder(Wish)


class PageFeed:
    """Serves one page until it goes away.

    Args:
        socket: the page's; accepted already.
        board: the picture.
        partitions: answers what partitions a site has.
        hello: what the page is told first.
    """

    def __init__(self, socket: WebSocket, board: Board, partitions: PartitionsOf, hello: dict[str, Any]) -> None:
        self._socket = socket
        self._board = board
        self._partitions = partitions
        self._hello = hello
        self._span = "hour"
        self._watching: asyncio.Task[None] | None = None
        self._sent_history: object = None
        self._sent_attention: object = None
        self._history_due = 0.0
        self._attention_due = 0.0

    async def serve(self, allowed: Callable[[], bool]) -> bool:
        """Send and receive until the page goes away, or is no longer allowed to look; False then."""
        await self._send({"type": "hello", "now": time.time(), **self._hello})
        gone = False
        try:
            async with asyncio.TaskGroup() as group, self._board.subscribe() as news:
                receiving = group.create_task(self._receive(group))
                await self._tell(news, allowed)
                receiving.cancel()
                await self._stop_watching()
        except* WebSocketDisconnect:
            gone = True
        return gone

    async def _send(self, value: dict[str, Any]) -> None:
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise WebSocketDisconnect  # another task has noticed that the page is gone
        await self._socket.send_text(msgspec.json.encode(value).decode())

    # ------------------------------------------------------------------ the picture

    async def _tell(self, news: News, allowed: Callable[[], bool]) -> None:
        whole = True
        while allowed():
            try:
                async with asyncio.timeout(PULSE):
                    names = await news.changed()
            except TimeoutError:
                names = []
            value = changes_value(self._board.picture, names, whole=whole)
            await self._send({**value, **self._worked_out(any(isinstance(name, JobName) for name in names) or whole)})
            whole = False
            await asyncio.sleep(GATHER)

    def _worked_out(self, jobs_changed: bool) -> dict[str, Any]:
        """Give what follows from the picture, as far as the page doesn't know it yet."""
        found: dict[str, Any] = {}
        now = time.monotonic()
        if now >= self._attention_due:
            self._attention_due = now + ATTENTION_INTERVAL
            items = attention(self._board.picture, time.time())
            if items != self._sent_attention:
                self._sent_attention = items
                found["attention"] = items
        step, buckets = STEPS[self._span]
        if (jobs_changed or now >= self._history_due + step) and now >= self._history_due:
            history = self._board.history(step=step, buckets=buckets)
            self._history_due = now + HISTORY_INTERVAL
            if history != self._sent_history:
                self._sent_history = history
                found["history"] = {**history_value(history), "span": self._span}
        return found

    # ------------------------------------------------------------------ what it asks for

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        while True:
            text = await self._socket.receive_text()
            try:
                wish = _wishes.decode(text)
            except msgspec.DecodeError:
                continue  # a page of another version
            if isinstance(wish, ShowHistory):
                self._span, self._sent_history = wish.span if wish.span in STEPS else self._span, None
                self._history_due = 0.0
            elif isinstance(wish, AskPartitions):
                group.create_task(self._answer_partitions(wish.site))
            else:
                await self._stop_watching()
                if isinstance(wish, Watch):
                    self._watching = group.create_task(self._watch(wish))

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None

    async def _watch(self, wish: Watch) -> None:
        try:
            watch = JobWatch(self._board.site(wish.site), wish.key, wish.task)
            async with aclosing(watch.values()) as values:
                async for value in values:
                    await self._send(value)
        except SlurmbusError as error:
            await self._send({"type": "job-problem", "message": error.message, "hint": error.hint})

    async def _answer_partitions(self, site: str) -> None:
        try:
            found = await self._partitions.of(site)
        except SlurmbusError as error:
            await self._send({"type": "partitions", "site": site, "problem": error.message})
        else:
            await self._send({"type": "partitions", "site": site, "partitions": found})
