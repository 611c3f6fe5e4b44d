"""For tests: an agent without a scheduler, which says what a test tells it to, over a real bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import msgspec
from nats.aio.msg import Msg

from slurmbus.home import AgentBundle, Home
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.capabilities import ADDITIONS, REQUEUE
from slurmbus_protocol.errors import LostMessages, SlurmbusError
from slurmbus_protocol.messages import (
    Chunk,
    Control,
    Heartbeat,
    Problem,
    ReadRange,
    Record,
    SchedulerHealth,
    Start,
    Submit,
)
from slurmbus_protocol.reading import pull
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import agent_inbox
from slurmbus_protocol.subjects import Stream


class ScriptedAgent:
    """Speaks for a site with the permissions of its real agent; an async context manager."""

    def __init__(self, home: Home, site: str) -> None:
        self.site = site
        bundle = msgspec.toml.decode(home.bundle_path(site).read_bytes(), type=AgentBundle)
        self.bus = Bus(
            BusSettings(
                bundle.servers,
                bundle.nkey_seed,
                inbox=agent_inbox(site),
                name=f"scripted {site}",
                ca=bundle.ca,
                tls_name=bundle.tls_name,
            )
        )
        self.spool: dict[tuple[str, int, Stream], bytes] = {}
        """What the agent finds in its spool when it is asked for bytes: (key, start, stream) -> all of them."""
        self._sequences: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        """Connect, however long the bus takes to know this agent (ten seconds at most)."""
        async with asyncio.timeout(10):
            while True:
                try:
                    await self.bus.__aenter__()
                    break
                except SlurmbusError:
                    await asyncio.sleep(0.05)
        await self.bus.serve(subjects.rpc(self.site, "read"), self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self.bus.__aexit__(kind, error, at)

    def forget(self) -> None:
        """Forget what the bus held: it is another one."""
        self._sequences.clear()

    async def request(self) -> Submit | Control:
        """Wait for the next request and acknowledge it."""
        async with aclosing(pull(self.bus, subjects.REQUESTS, subjects.consumer(self.site), batch=1)) as messages:
            async for msg in messages:
                await self.bus.request(msg.reply, b"+ACK")
                message = codec.decode(msg.data)
                if isinstance(message, Submit | Control):
                    return message
        raise AssertionError("the bus ended")

    async def heartbeat(self, **changes: Any) -> None:
        """Say that the agent is there."""
        now = time.time()
        health = SchedulerHealth(kind="local", responding=True, since=now)
        message = Heartbeat(
            site=self.site,
            agent_id="scripted",
            epoch=1,
            leader=True,
            interval=10.0,
            lease_seconds=30.0,
            host="localhost",
            user="tester",
            pid=1,
            version="0",
            protocol=codec.PROTOCOL_RANGE,
            capabilities=(*ADDITIONS, REQUEUE),
            started_at=now,
            sent_at=now,
            scheduler=health,
        )
        data = codec.encode(msgspec.structs.replace(message, **changes))
        await self._publish(f"KV_{subjects.AGENTS_BUCKET}", subjects.lease(self.site), data)

    async def record(self, key: str, state: JobState, **fields: Any) -> Record:
        """Publish a job's record, or with ``task=`` that of a task of an array."""
        now = time.time()
        record = Record(
            key=key,
            site=self.site,
            epoch=1,
            state=state,
            name=fields.pop("name", "scripted"),
            submitter="tester@localhost",
            created_at=fields.pop("created_at", now),
            updated_at=now,
            **fields,
        )
        await self._publish(subjects.STATES, subjects.state(self.site, key, record.task), codec.encode(record))
        return record

    async def chunk(
        self, key: str, stream: Stream, offset: int, data: bytes, *, task: int = 0, start: int = 0, skipped: int = 0
    ) -> None:
        """Publish a byte range of a stream; ``skipped`` bytes right before it were left out on purpose."""
        kept_in = subjects.MESSAGES if stream is Stream.MESSAGES else subjects.LOGS
        await self._publish(
            kept_in, subjects.stream(self.site, key, task, start, stream), codec.chunk(offset, data, skipped)
        )

    async def _publish(self, stream: str, subject: str, data: bytes) -> None:
        expected = self._sequences.get(subject)
        found = await self.bus.publish_until_acknowledged(subject, data, expected_last=expected)
        if found is None:  # the answer to an earlier attempt was lost
            last = await self.bus.last(stream, subject)
            if last is None or last.data != data:
                raise AssertionError(f"{subject}: somebody else wrote")
            found = last.sequence
        self._sequences[subject] = found

    async def _read(self, msg: Msg) -> None:
        question = codec.decode_as(msg.data, ReadRange)
        everything = self.spool.get((question.key, question.start, Stream(question.stream)), b"")
        data = everything[question.offset :][: question.length]
        if data:
            answer: Chunk | Problem = Chunk(offset=question.offset, data=data)
        else:
            answer = Problem(code=LostMessages.code, message="the spool doesn't hold these bytes")
        await self.bus.respond(msg, codec.encode(answer))


def ended_start(number: int = 0, *, exit_code: int = 0, sizes: Mapping[Stream, int] | None = None) -> Start:
    """Make a start that has ended, with the sizes of its streams."""
    now = time.time()
    return Start(
        number=number,
        job_id=1000 + number,
        node="node1",
        nonce=f"nonce-{number}",
        started_at=now,
        ended_at=now,
        exit_code=exit_code,
        sizes={str(stream): (sizes or {}).get(stream, 0) for stream in Stream},
    )
