"""A real server and a real spool for a relay, and what a reader finds on the bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from slurmbus_agent.job import Job, Tools
from slurmbus_agent.relay import Relay
from slurmbus_agent.spool import Spool
from slurmbus_agent.spool_files import Report
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.embedded import BusUser, EmbeddedServer, new_user_seed, public_key
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.messages import Chunk, CommandPlan, JobSpec, Record, Start
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import ensure_streams
from slurmbus_protocol.subjects import Stream

SITE = "site"
PATIENCE = 60.0


@dataclass
class Place:
    """Where relays are tested."""

    server: EmbeddedServer
    seed: str
    spool: Spool

    def run(self, test: Callable[[Bus], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(PATIENCE), Bus(BusSettings((self.server.url,), self.seed)) as bus:
                await ensure_streams(bus)
                await test(bus)

        asyncio.run(main())

    def job(self, key: str, relay: Relay, *, limit: int, content: bytes) -> Job:
        """Make a job whose first start has written this to stdout; only its bytes can be moved."""
        folder = self.spool.job(key, 0)
        folder.create(b"request", "subject", {})
        (folder.path / "0.stdout").write_bytes(content)
        start = Start(number=0, job_id=1, node="c1", nonce="n")
        report = Report(
            start=0, job_id=1, node="c1", nonce="n", reported_at=1, sizes={Stream.STDOUT.value: len(content)}
        )
        (folder.path / "0.report").write_bytes(msgspec.json.encode(report))
        record = Record(
            key=key,
            site=SITE,
            epoch=1,
            state=JobState.RUNNING,
            name="x",
            submitter="me",
            created_at=1,
            updated_at=1,
            starts=(start,),
        )
        spec = JobSpec(name="x", plan=CommandPlan(argv=("true",)), stream_limit=limit)
        nothing: Any = None
        return Job(record, spec, folder, Tools(nothing, nothing, relay, nothing, nothing))


@contextmanager
def relay_place(folder: Path) -> Iterator[Place]:
    seed = new_user_seed()
    with EmbeddedServer(folder / "bus", [BusUser("client", public_key(seed))]) as server:
        spool = Spool(folder / "spool")
        spool.prepare()
        yield Place(server, seed, spool)


async def patiently(ask: Callable[[], Awaitable[Msg]]) -> Msg:
    while True:
        try:
            return await ask()
        except BusUnreachable:
            await asyncio.sleep(0.01)


async def chunks_on(bus: Bus, key: str, stream: Stream = Stream.STDOUT) -> list[Chunk]:
    """Give what the bus holds of a stream, in order."""
    subject = subjects.stream(SITE, key, 0, 0, stream)
    found: list[Chunk] = []
    sequence = 0
    while True:
        question = json.dumps({"seq": sequence + 1, "next_by_subj": subject}).encode()
        answer = await patiently(partial(bus.request, f"$JS.API.DIRECT.GET.{subjects.LOGS}", question))
        headers = answer.headers or {}
        if headers.get("Status") == "404":
            return found
        found.append(codec.decode_as(answer.data, Chunk))
        sequence = int(headers["Nats-Sequence"])
