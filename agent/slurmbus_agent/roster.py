"""The jobs that an agent follows, and how they come to it: accepted, taken over, or found in the spool."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.environments.store import Installation
from slurmbus_agent.intake import Accepted
from slurmbus_agent.job import Job, Tools
from slurmbus_agent.records import Fenced
from slurmbus_agent.scheduler.base import Scheduler, SchedulerError
from slurmbus_agent.spool import JobDir, Spool
from slurmbus_agent.tasks import spawn
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.errors import InvalidName, SlurmbusError
from slurmbus_protocol.messages import CancelAsked, EnvironmentRef, NamedEnvironment, Record, Submit
from slurmbus_protocol.states import JobState

log = logging.getLogger(__name__)

JobName = tuple[str, int]


class Roster:
    """All jobs of one agent while it leads.

    Args:
        spool: where jobs live.
        audit: where cancelled strays are noted.
    """

    def __init__(self, spool: Spool, audit: Audit) -> None:
        self._spool = spool
        self._audit = audit
        self.jobs: dict[JobName, Job] = {}
        self.changed = asyncio.Event()
        """Set whenever a job was added."""
        self._finished: set[JobName] = set()
        self._locks: WeakValueDictionary[JobName, asyncio.Lock] = WeakValueDictionary()
        self._strays: set[int] = set()

    def begin(self, epoch: int, tools: Tools, group: asyncio.TaskGroup) -> None:
        """Lead from now on; the jobs live in this task group."""
        self._epoch = epoch
        self._tools = tools
        self._group = group

    def end(self) -> None:
        """Lead no more."""
        self.jobs.clear()
        self._finished.clear()

    @property
    def unfinished(self) -> dict[str, int]:
        """How many unfinished jobs there are, by state."""
        return dict(Counter(job.record.state.value for job in self.jobs.values() if not job.record.state.is_final))

    def secret(self, key: str, task: int) -> bytes | None:
        """Give what a job's runner proves itself with; None when there is no such job."""
        job = self.jobs.get((key, task))
        return job.secret() if job else None

    def users(self, installation: Installation) -> list[str]:
        """Give the keys of the unfinished jobs that use an installed environment, or are about to."""
        return [
            job.record.key for job in self.jobs.values() if not job.record.state.is_final and _uses(job, installation)
        ]

    # ------------------------------------------------------------------ how jobs come here

    async def take_over(self, bus_id: str) -> None:
        """Take up every unfinished job of the spool; on a bus that is new to the spool, give all records back to it."""
        new_bus = await asyncio.to_thread(self._spool.bus_id) != bus_id
        await self._look_through(await asyncio.to_thread(self._spool.keys), new_bus=new_bus)
        if new_bus:
            await asyncio.to_thread(self._spool.write_bus_id, bus_id)

    async def adopt(self) -> None:
        """Look for ever, now and then, for unfinished jobs in the spool that nobody follows."""
        while True:
            await asyncio.sleep(budgets.ADOPT_INTERVAL)
            with contextlib.suppress(SlurmbusError):  # the spool is away; the next look finds them
                names = set(await asyncio.to_thread(self._spool.keys))
                self._finished &= names  # what was forgotten needn't be remembered here
                await self._look_through(sorted(names - self.jobs.keys() - self._finished), new_bus=False)

    async def _look_through(self, names: list[JobName], *, new_bus: bool) -> None:
        gate = asyncio.Semaphore(budgets.ADOPT_AT_ONCE)

        async def look(name: JobName) -> None:
            async with gate:
                await self._look_at(name, new_bus=new_bus)

        async with asyncio.TaskGroup() as group:
            for name in names:
                spawn(group, look(name))

    async def _look_at(self, name: JobName, *, new_bus: bool = False) -> None:
        """Take a job of the spool up unless it is over."""
        async with self._reserved(name) as free:
            if not free:
                return
            try:
                job = await self._read(name, new_bus=new_bus)
            except Fenced:
                raise
            except SlurmbusError as error:
                log.warning("the spool of job %s can't be taken up: %s", name[0], error)
                return
            if job is not None:
                self._follow(job)

    async def _read(self, name: JobName, *, new_bus: bool) -> Job | None:
        """Give a job of the spool whose record is now ours, or None when there is nothing left to do for it."""
        folder = self._spool.job(*name)
        kept = await asyncio.to_thread(folder.read_record)
        if kept is not None and kept.state.is_final:
            if new_bus:
                await self._tools.records.take_over(*name, self._epoch, kept)
                if kept.outputs and time.time() - kept.updated_at < budgets.OUTPUTS_AGAIN:
                    spawn(self._group, self._give_outputs_back(folder, kept))
            self._finished.add(name)
            return None
        request = await asyncio.to_thread(folder.read_request)
        if request is None:
            return None  # it wasn't acknowledged and comes again
        submit = codec.decode_as(request.data, Submit)
        rebuilt = await asyncio.to_thread(self._rebuild, submit, request.data, folder, kept)
        record = await self._tools.records.take_over(*name, self._epoch, rebuilt)
        if record is None:
            return None
        if record.state.is_final:
            await asyncio.to_thread(folder.write_record, record)
            self._finished.add(name)
            return None
        return Job(record, submit.job, folder, self._tools)

    async def _give_outputs_back(self, folder: JobDir, record: Record) -> None:
        """Put the outputs of a finished job on a bus that has lost them."""
        try:
            request = await asyncio.to_thread(folder.read_request)
            if request is not None:
                await self._tools.stager.collect(record, codec.decode_as(request.data, Submit).job)
        except (SlurmbusError, OSError) as error:
            log.warning("the outputs of job %s can't be given back: %s", record.key, error)

    def _rebuild(self, submit: Submit, request: bytes, folder: JobDir, kept: Record | None) -> Record:
        """Make the record of a job that the bus knows nothing of; its claims, Slurm and accounting tell the rest."""
        job = submit.job
        staged = folder.read_plan() is not None
        record = Record(
            key=submit.key,
            site=submit.site,
            epoch=self._epoch,
            state=JobState.SUBMITTING if staged else JobState.ACCEPTED,
            maybe_submitted=staged,
            submits=int(staged),
            name=job.name,
            submitter=submit.submitter,
            request_sha256=hashlib.sha256(request).hexdigest(),
            created_at=min(time.time(), subjects.ulid_time(submit.key)),
            updated_at=time.time(),
            labels=job.labels,
            options=job.options,
            requeue=job.options.requeue,
            outputs_pending=bool(job.outputs),
            scheduler=self._tools.scheduler.kind,
            spool=str(folder.path),
            work_dir=str(folder.work_dir(job.work_base).path),
        )
        if kept is None:
            return record
        return msgspec.structs.replace(record, created_at=kept.created_at, cancel=kept.cancel)

    async def accept(self, accepted: Accepted) -> None:
        """Keep a new request in the spool, then follow its job."""
        record, stored = accepted.record, accepted.stored
        name = (record.key, record.task)
        async with self._reserved(name) as free:
            if not free:
                return
            if not self.jobs:  # start the scheduler's process while the files are being staged
                spawn(self._group, _warm_up(self._tools.scheduler))
            folder = self._spool.job(*name)
            try:
                await asyncio.to_thread(folder.create, stored.data, stored.subject, dict(stored.headers))
            except SlurmbusError as error:
                await self._tools.records.write(
                    msgspec.structs.replace(
                        record, state=JobState.REJECTED, error_code=error.code, reason=error.message, hint=error.hint
                    )
                )
                return
            ours: Record | None = record
            if record.epoch != self._epoch:  # an agent before us made it and came no further
                ours = await self._tools.records.take_over(*name, self._epoch, None)
            if ours is not None and not ours.state.is_final:
                self._follow(Job(ours, accepted.submit.job, folder, self._tools))

    @contextlib.asynccontextmanager
    async def _reserved(self, name: JobName) -> AsyncIterator[bool]:
        """Let one at a time take a job up; False when it is followed already."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            yield name not in self.jobs

    def _follow(self, job: Job) -> None:
        name = (job.record.key, job.record.task)
        self.jobs[name] = job
        self.changed.set()

        async def live() -> None:
            try:
                await job.run()
            finally:
                if self.jobs.get(name) is job:
                    del self.jobs[name]
            self._finished.add(name)

        spawn(self._group, live(), name=f"job {name[0]}")

    # ------------------------------------------------------------------ ending jobs

    async def cancel(self, key: str, asked: CancelAsked) -> bool:
        """Ask for the end of a job; comes back when that is durable, with False when there is no such job."""
        if not self._followed(key):
            await self._look_at((key, 0))
        jobs = self._followed(key)
        for job in jobs:
            await job.cancel(asked)
        return bool(jobs)

    def _followed(self, key: str) -> list[Job]:
        return [job for (job_key, _), job in self.jobs.items() if job_key == key]

    def stray(self, job_id: int, slurm_name: str) -> None:
        """Hear of an unfinished job in Slurm that nobody follows; it may be the late twin of one that is over."""
        key = slurm_name.rpartition(".")[2]
        try:
            name = (subjects.check_key(key), 0)
        except InvalidName:
            return
        if name in self._finished and job_id not in self._strays:
            self._strays.add(job_id)
            spawn(self._group, self._end_stray(job_id, slurm_name))

    async def _end_stray(self, job_id: int, slurm_name: str) -> None:
        try:
            await self._tools.scheduler.cancel(job_id, slurm_name)
        except SchedulerError as error:
            log.warning("Slurm job %d is a late twin of %s and couldn't be cancelled: %s", job_id, slurm_name, error)
            self._strays.discard(job_id)
        else:
            self._audit.write("stray cancelled", job_id=job_id, name=slurm_name)


def _uses(job: Job, installation: Installation) -> bool:
    digest, wanted = installation.info.digest, job.spec.environment
    if job.record.environment is not None:
        return job.record.environment == digest
    if isinstance(wanted, NamedEnvironment):  # it isn't known yet which one that is
        return True
    return isinstance(wanted, EnvironmentRef) and wanted.digest == digest


async def _warm_up(scheduler: Scheduler) -> None:
    with contextlib.suppress(SchedulerError):
        await scheduler.ping()
