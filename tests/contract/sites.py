"""Where the contract of a scheduler is tried: a scheduler, and a folder that its jobs can use."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from slurmbus_agent.scheduler.base import BatchJob, Observation, Scheduler
from slurmbus_agent.scheduler.local import LocalScheduler
from slurmbus_protocol.messages import JobOptions

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL"}
PATIENCE = 60.0


class Site(ABC):
    """One scheduler under test."""

    kind: str
    work_dir: str
    minute: float
    """How long a minute of a time limit lasts at most, with the time until the scheduler looks."""

    @abstractmethod
    def scheduler(self) -> Scheduler:
        """Make a scheduler; closed by :meth:`open`."""

    @abstractmethod
    def read(self, path: str) -> str:
        """Read a file of the site."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Scheduler]:
        scheduler = self.scheduler()
        try:
            yield scheduler
        finally:
            await scheduler.aclose()

    def batch_job(
        self, name: str, body: str, *, environment: dict[str, str] | None = None, **options: object
    ) -> BatchJob:
        """Make a job whose script has this body; its output is ``<name>.out``."""
        return BatchJob(
            name=name,
            script=f"#!/bin/bash\n{body}\n",
            work_dir=self.work_dir,
            output=f"{self.work_dir}/{name}.out",
            environment={"PATH": "/usr/local/bin:/usr/bin:/bin"} | (environment or {}),
            options=JobOptions(**options),  # type: ignore[arg-type]
        )


class LocalSite(Site):
    """Local processes."""

    kind = "local"
    minute = 0.3

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"
        work = folder / "work"
        work.mkdir()
        self.work_dir = str(work)

    def scheduler(self) -> LocalScheduler:
        return LocalScheduler(self.folder, kill_wait=0.5, minute=self.minute)

    def read(self, path: str) -> str:
        return Path(path).read_text()


async def observe(
    scheduler: Scheduler, job_id: int, wanted: Callable[[Observation], bool], within: float = PATIENCE
) -> Observation:
    """Observe a job until it is as wanted."""
    give_up = time.monotonic() + within
    while True:
        seen = await scheduler.job(job_id)
        if seen is not None and wanted(seen):
            return seen
        assert time.monotonic() < give_up, f"job {job_id} is {seen}"
        await asyncio.sleep(0.02)


def has_ended(job: Observation) -> bool:
    return job.state in FINAL and "COMPLETING" not in job.flags


async def end_of(scheduler: Scheduler, job_id: int, within: float = PATIENCE) -> Observation:
    return await observe(scheduler, job_id, has_ended, within)


def run_for(seconds: float) -> str:
    return f"exec sleep {seconds}"
