"""Sites that say what real agents say: heartbeats and records of the real types, published on a real bus."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import msgspec

from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.messages import (
    Accounting,
    BudgetUse,
    Heartbeat,
    JobOptions,
    Live,
    Partition,
    Partitions,
    Record,
    SchedulerHealth,
    Start,
    Vitals,
)
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

NAMES = (
    "features",
    "train-encoder",
    "regrid",
    "ensemble-member",
    "align-reads",
    "postprocess",
    "render-tiles",
    "score",
)
PARTITIONS = ("main", "gpu", "long", "debug")
REASONS = {
    JobState.FAILED: "the payload ended with exit code 1",
    JobState.TIMEOUT: "the job reached its time limit of 1:00:00",
    JobState.OUT_OF_MEMORY: "the job used more memory than its 16 GiB",
    JobState.PENDING: "Priority",
}


class Stage:
    """Publishes for any site of a home; an async context manager.

    Args:
        home: whose bus.
        seed: the same seed gives the same jobs.
    """

    def __init__(self, home: Home, seed: int = 1) -> None:
        settings = ConnectionSettings(credentials=home.credentials, home=home.path)
        self.bus = Bus(settings.bus_settings())
        self.random = random.Random(seed)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.bus)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def heartbeat(self, beat: Heartbeat) -> None:
        """Publish it where its agent would."""
        key = subjects.lease(beat.site) if beat.leader or beat.released else subjects.standby(beat.site, beat.agent_id)
        await self.bus.publish(key, codec.encode(beat))

    async def record(self, record: Record) -> None:
        """Publish a job's record."""
        await self.bus.publish(subjects.state(record.site, record.key, record.task), codec.encode(record))

    async def output(self, record: Record, stream: Stream, offset: int, text: str) -> int:
        """Publish output of a job's last start, and give where the next one goes on."""
        data = text.encode()
        subject = subjects.stream(record.site, record.key, record.task, 0, stream)
        await self.bus.publish(subject, codec.chunk(offset, data, 0))
        return offset + len(data)

    async def answer_partitions(self, site: str, partitions: Iterable[Partition]) -> None:
        """Answer the question for a site's partitions."""
        answer = codec.encode(Partitions(partitions=tuple(partitions)))

        async def respond(msg: Any) -> None:
            await self.bus.respond(msg, answer)

        await self.bus.serve(subjects.rpc(site, "partitions"), respond)

    # ------------------------------------------------------------------ what agents and jobs look like

    def record_of(self, site: str, state: JobState, age: float, **changes: Any) -> Record:
        """Make the record of a job that was submitted ``age`` seconds ago and is in this state."""
        pick = self.random
        now = time.time()
        created = now - age
        started = state not in {JobState.ACCEPTED, JobState.STAGING, JobState.SUBMITTING, JobState.PENDING}
        wait = min(age * 0.3, pick.uniform(2, 90))
        begin = created + wait if started else None
        ran = min(0.95 * (age - wait), pick.expovariate(1 / 240))
        end = created + wait + ran if state.is_final else None
        job_id = changes.pop("job_id", pick.randrange(100_000, 999_999))
        node = f"node{pick.randrange(1, 240):03}"
        timings = {
            "requested": created,
            "accepted": created + 0.002,
            "staged": created + 0.031,
            "submitted": created + 0.038,
        }
        if end is not None:
            timings |= {"claimed": created + wait, "ended": end + 0.004, "drained": end + 0.009, "outputs": end + 0.02}
        key = changes.pop("key", None) or _ulid(created, pick)
        return Record(
            key=key,
            site=site,
            epoch=1,
            state=state,
            name=changes.pop("name", pick.choice(NAMES)),
            submitter="alice@workstation",
            created_at=created,
            updated_at=(end or begin or created) + 0.03,
            scheduler="native",
            job_id=job_id,
            partition=pick.choice(PARTITIONS),
            options=JobOptions(account="climate", qos="normal"),
            nodes=1,
            node_list=node if started else None,
            alloc_cpus=8 if started else None,
            start_time=begin,
            end_time=end,
            exit_code=None if end is None else int(state is not JobState.COMPLETED),
            reason=REASONS.get(state),
            starts=(_start(job_id, node, begin, end, state, pick),) if begin is not None else (),
            accounting=_accounting(state, end - begin, pick) if begin is not None and end is not None else None,
            labels={"run": key[-8:].lower(), "asset": pick.choice(("climate/era5", "genomes/hg38", "tiles"))},
            timings=timings,
            **changes,
        )

    def heartbeat_of(self, site: str, **changes: Any) -> Heartbeat:
        """Make the heartbeat of a healthy agent.

        It counts for long, so that an agent stays alive however slowly a browser starts; ``interval`` and
        ``lease_seconds`` say otherwise.
        """
        now = time.time()
        health = SchedulerHealth(
            kind="native",
            responding=True,
            since=now - 7200,
            latency=self.random.uniform(0.002, 0.006),
            calls={"jobs": 412, "submit": 131, "ping": 80},
            version="26.05.5",
        )
        vitals = Vitals(
            cpu_seconds=14.2,
            rss=44 * 2**20,
            open_files=23,
            jobs={"RUNNING": 12, "PENDING": 31},
            backlog=0,
            bus_latency=self.random.uniform(0.012, 0.019),
            scheduler_rss=31 * 2**20,
            scheduler_pid=4242,
            link_connections=12,
            bus_bytes_in=3 * 2**20,
            bus_bytes_out=61 * 2**20,
            budgets=(
                BudgetUse(name="cpu-time", used=14.2, limit=72.0, unit="s", window_seconds=3600),
                BudgetUse(name="memory", used=44 * 2**20, limit=60 * 2**20, unit="B"),
                BudgetUse(name="calls", used=96, limit=720, unit="calls", window_seconds=3600),
            ),
        )
        base = Heartbeat(
            site=site,
            agent_id=f"login1-{site}",
            epoch=3,
            leader=True,
            interval=600.0,
            lease_seconds=1800.0,
            host="login1",
            user="alice",
            pid=21_417,
            version="0.1.0",
            protocol=codec.PROTOCOL_RANGE,
            capabilities=(),
            started_at=now - 93_000,
            sent_at=now,
            scheduler=health,
            vitals=vitals,
        )
        return msgspec.structs.replace(base, **changes)


def _start(job_id: int, node: str, begin: float, end: float | None, state: JobState, pick: random.Random) -> Start:
    live = Live(
        at=time.time(),
        node=node,
        cpus=8,
        cpu_seconds=310.0,
        cpu_percent=pick.uniform(70, 98),
        rss=int(pick.uniform(2, 9) * 2**30),
        peak_rss=10 * 2**30,
        processes=9,
        memory_limit=16 * 2**30,
    )
    return Start(
        number=0,
        job_id=job_id,
        node=node,
        nonce="nonce",
        started_at=begin,
        ended_at=end,
        exit_code=None if end is None else int(state is not JobState.COMPLETED),
        sizes=None if end is None else {str(stream): 0 for stream in Stream},
        live=live,
    )


def _accounting(state: JobState, elapsed: float, pick: random.Random) -> Accounting:
    return Accounting(
        state=state.value,
        exit_code=int(state is not JobState.COMPLETED),
        signal=0,
        elapsed=elapsed,
        cpu_seconds=elapsed * 8 * pick.uniform(0.5, 0.97),
        alloc_cpus=8,
        max_rss=int(pick.uniform(1, 12) * 2**30),
    )


def _ulid(at: float, pick: random.Random) -> str:
    letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    value = int(at * 1000) << 80 | pick.getrandbits(80)
    return "".join(letters[(value >> shift) & 31] for shift in range(125, -5, -5))
