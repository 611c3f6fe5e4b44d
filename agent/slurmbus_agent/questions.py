"""Answers questions; they may fail and are asked again, so nothing durable goes this way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg

from slurmbus_agent.presence import Places
from slurmbus_agent.scheduler.base import Scheduler
from slurmbus_agent.spool import Spool
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import InvalidBody, LostMessages, SlurmbusError, UnknownType
from slurmbus_protocol.messages import (
    AskLog,
    AskPartitions,
    Chunk,
    Heartbeat,
    Message,
    Partitions,
    Ping,
    Pong,
    Problem,
    ReadRange,
)
from slurmbus_protocol.subjects import Stream

log = logging.getLogger(__name__)


class Questions:
    """Answers on the site's rpc subjects.

    Args:
        bus: the connection.
        site: whose questions.
        scheduler: for partitions.
        spool: for byte ranges that the bus doesn't hold any more.
        heartbeat: gives the agent's present state.
        freshen: has the agent look whether its authority has changed, so that who has just renewed it sees that.
        leading: whether this agent serves the site at this moment; one that stands by leaves questions to the other.
    """

    def __init__(
        self,
        bus: Bus,
        site: str,
        *,
        scheduler: Scheduler,
        spool: Spool,
        heartbeat: Callable[[], Heartbeat],
        freshen: Callable[[], Awaitable[None]],
        leading: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._site = site
        self._scheduler = scheduler
        self._spool = spool
        self._heartbeat = heartbeat
        self._freshen = freshen
        self._leading = leading

    async def serve(self) -> None:
        """Begin to answer."""
        answers: dict[str, Callable[[Message], Awaitable[Message]]] = {
            "ping": self._ping,
            "info": self._info,
            "partitions": self._partitions,
            "read": self._read,
            "log": self._log,
        }
        for verb, answer in answers.items():
            await self._bus.serve(subjects.rpc(self._site, verb), self._handler(answer))

    def _handler(self, answer: Callable[[Message], Awaitable[Message]]) -> Callable[[Msg], Awaitable[None]]:
        async def handle(msg: Msg) -> None:
            if not self._leading():
                return
            try:
                reply = await answer(codec.decode(msg.data))
            except SlurmbusError as error:
                reply = Problem(code=error.code, message=error.message, hint=error.hint, retryable=error.retryable)
            await self._bus.respond(msg, codec.encode(reply))

        return handle

    async def _ping(self, question: Message) -> Message:
        if not isinstance(question, Ping):
            raise UnknownType(f"expected ping, got {question.TYPE}", hint="")
        heartbeat = self._heartbeat()
        return Pong(sent_at=question.sent_at, agent_id=heartbeat.agent_id, epoch=heartbeat.epoch)

    async def _info(self, question: Message) -> Message:
        if not isinstance(question, Ping):
            raise UnknownType(f"expected ping, got {question.TYPE}", hint="")
        await self._freshen()
        return self._heartbeat()

    async def _partitions(self, question: Message) -> Message:
        if not isinstance(question, AskPartitions):
            raise UnknownType(f"expected ask-partitions, got {question.TYPE}", hint="")
        return Partitions(partitions=tuple(await self._scheduler.partitions()))

    async def _read(self, question: Message) -> Message:
        if not isinstance(question, ReadRange):
            raise UnknownType(f"expected read-range, got {question.TYPE}", hint="")
        try:
            stream = Stream(question.stream)
        except ValueError as error:
            raise InvalidBody(f"stream {question.stream!r} isn't one of stdout, stderr, messages") from error
        folder = self._spool.job(question.key, question.task)
        length = min(question.length, codec.MAX_CHUNK)
        data = await asyncio.to_thread(folder.read, question.start, stream, question.offset, length)
        if not data:
            raise LostMessages(f"the spool has no bytes of {stream} from {question.offset} on")
        return Chunk(offset=question.offset, data=data)

    async def _log(self, question: Message) -> Message:
        if not isinstance(question, AskLog):
            raise UnknownType(f"expected ask-log, got {question.TYPE}", hint="")
        length = min(question.length, codec.MAX_CHUNK)
        return await asyncio.to_thread(Places(self._spool.root).log_tail, question.offset, length)
