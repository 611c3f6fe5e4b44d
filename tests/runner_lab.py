"""A laboratory for runners: a spool, real runner processes and a link whose far end keeps everything in memory."""
# ruff: noqa: ARG002 - a sink is told more than this one needs

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurmbus_agent.link import EndReport, LinkServer, Welcome
from slurmbus_agent.link_tls import LinkKeys
from slurmbus_agent.spool import JobDir, RunnerPlan, Spool, batch_script
from slurmbus_protocol.certificates import make_alone
from slurmbus_protocol.messages import Live, Start
from slurmbus_protocol.subjects import Stream, new_ulid

SECRET = bytes(range(32))
_MADE = make_alone("lab")
KEYS = LinkKeys.of(_MADE.pem + _MADE.key)
PATIENCE = 30.0


async def until(condition: Callable[[], Any], what: str, within: float = PATIENCE) -> None:
    """Wait for a condition."""
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up, f"waited {within} s for: {what}"
        await asyncio.sleep(0.005)


@dataclass
class Sink:
    """Takes what runners report as the agent's relay does: overlaps are trimmed, gaps are asked for again."""

    streams: dict[tuple[int, Stream], bytearray] = field(default_factory=dict)
    hellos: list[Start] = field(default_factory=list)
    started_at: dict[int, float] = field(default_factory=dict)
    ends: dict[int, EndReport] = field(default_factory=dict)
    live_use: list[Live] = field(default_factory=list)
    found: list[dict[str, str]] = field(default_factory=list)
    connected: int = 0
    chunks: int = 0
    largest: int = 0
    refuse: Callable[[Start], bool] = lambda _: False
    limits: dict[str, int] = field(default_factory=dict)
    before_chunk: Callable[[], Any] | None = None

    def of(self, start: int, stream: Stream) -> bytearray:
        return self.streams.setdefault((start, stream), bytearray())

    async def hello(self, key: str, task: int, start: Start) -> Welcome | None:
        self.hellos.append(start)
        if self.refuse(start):
            return None
        self.connected += 1
        return Welcome({stream.value: len(self.of(start.number, stream)) for stream in Stream}, self.limits)

    async def chunk(self, key: str, task: int, start: int, stream: Stream, offset: int, data: bytes) -> int:
        if self.before_chunk is not None:
            await self.before_chunk()
        assert data
        self.chunks += 1
        self.largest = max(self.largest, len(data))
        have = self.of(start, stream)
        if offset <= len(have):
            have += data[len(have) - offset :]
        return len(have)

    async def started(self, key: str, task: int, start: int, started_at: float) -> None:
        self.started_at[start] = started_at

    async def ended(self, key: str, task: int, start: int, end: EndReport) -> None:
        self.ends[start] = end

    async def live(self, key: str, task: int, start: int, live: Live) -> None:
        self.live_use.append(live)

    async def facts(self, key: str, task: int, start: int, facts: Mapping[str, str]) -> None:
        self.found.append(dict(facts))

    def lost(self, key: str, task: int, start: int) -> None:
        self.connected -= 1


@contextlib.asynccontextmanager
async def serving(sink: Sink, spool: Spool | None = None, **options: Any) -> AsyncIterator[LinkServer]:
    """Listen, and say so in the spool."""
    server = LinkServer(sink, lambda _key, _task: SECRET, "127.0.0.1", **{"keys": KEYS, **options})
    try:
        address = await server.start()
        if spool is not None:
            spool.write_link(address)
        yield server
    finally:
        await server.aclose()


class Lab:
    """One spool."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.spool = Spool(folder / "spool")
        self.runner = self.spool.prepare()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._job_ids = iter(range(100, 10_000))

    def job(self, *argv: str, link: bool = True, **plan: Any) -> JobDir:
        """Stage a job."""
        key = new_ulid()
        job = self.spool.job(key, 0)
        job.create(b"request", "subject", {})
        plan.setdefault("cwd", str(job.work_dir(None).path))
        job.write_plan(
            RunnerPlan(key=key, task=0, argv=argv, secret=SECRET, link=str(self.spool.link) if link else None, **plan)
        )
        return job

    def start(
        self,
        job: JobDir,
        *,
        python: str = sys.executable,
        job_id: int | None = None,
        env: dict[str, str] | None = None,
        inside: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a job's batch script as Slurm does, or as an argument of another command."""
        script = job.path / f"script{len(self.processes)}"  # Slurm gives each start a copy of its own, too
        script.write_text(batch_script(python, self.runner, job.path))
        script.chmod(0o700)
        base = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "SLURM_JOB_ID": str(job_id or next(self._job_ids)),
            "SLURMD_NODENAME": "c1",
        }
        with job.batch_output.open("ab") as output:
            process = subprocess.Popen(
                [*inside, str(script)], env=base | (env or {}), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.processes.append(process)
        return process

    def run(self, job: JobDir, **options: Any) -> int:
        """Run a job to its end, and give the exit code of its batch script."""
        return self.start(job, **options).wait(PATIENCE)

    async def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a batch script beside other things."""
        await until(lambda: process.poll() is not None, "the end of the runner")
        return process.returncode

    def close(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Give a laboratory that leaves nothing running."""
    one = Lab(folder)
    try:
        yield one
    finally:
        one.close()


def payload_bytes(job: JobDir, start: int, stream: Stream) -> bytes:
    """Give a stream as it is in the spool."""
    path = job.path / f"{start}.{stream}"
    return path.read_bytes() if path.exists() else b""
