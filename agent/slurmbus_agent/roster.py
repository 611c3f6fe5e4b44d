"""The jobs that an agent follows, and how they come to it: accepted, taken over, or found in the spool."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.arrays import ArrayQueue, parse_slurm_name, spec_of, task_fields
from slurmbus_agent.audit import Audit
from slurmbus_agent.environments.store import Installation
from slurmbus_agent.guest.beats import Beats
from slurmbus_agent.intake import Accepted
from slurmbus_agent.job import Job, Tools
from slurmbus_agent.lifecycle import refusal
from slurmbus_agent.records import Fenced
from slurmbus_agent.requests import KeptRequest, Requests
from slurmbus_agent.scheduler.array import split_name
from slurmbus_agent.scheduler.base import Scheduler, SchedulerError
from slurmbus_agent.spool import JobDir, Spool, StoredRequest
from slurmbus_agent.tasks import spawn
from slurmbus_protocol import subjects
from slurmbus_protocol.errors import NotRequeueable, SlurmbusError
from slurmbus_protocol.messages import (
    CancelAsked,
    ControlRefused,
    EnvironmentRef,
    NamedEnvironment,
    Record,
    RequeueAsked,
    Submit,
)
from slurmbus_protocol.states import JobState

log = logging.getLogger(__name__)

JobName = tuple[str, int]


class Roster:
    """All jobs of one agent while it leads.

    Args:
        spool: where jobs live.
        audit: where cancelled strays are noted.
        beats: tells of heartbeats.
        array_size: how many tasks Slurm gets as one array.
    """

    def __init__(self, spool: Spool, audit: Audit, beats: Beats, array_size: int = budgets.ARRAY_SIZE) -> None:
        self._spool = spool
        self._array_size = array_size
        self._audit = audit
        self._beats = beats
        self.jobs: dict[JobName, Job] = {}
        self.changed = asyncio.Event()
        """Set whenever a job was added."""
        self._finished: set[JobName] = set()
        self._locks: WeakValueDictionary[JobName, asyncio.Lock] = WeakValueDictionary()
        self._strays: set[tuple[int, str]] = set()
        self._requests = Requests(spool)

    def begin(self, epoch: int, tools: Tools, group: asyncio.TaskGroup) -> None:
        """Lead from now on; the jobs live in this task group."""
        self._epoch = epoch
        self._group = group
        queue = ArrayQueue(tools.scheduler, self.jobs, lambda work: spawn(group, work), self._array_size)
        self._tools = dataclasses.replace(tools, arrays=queue)

    def end(self) -> None:
        """Lead no more."""
        self.jobs.clear()
        self._finished.clear()

    @property
    def unfinished(self) -> dict[str, int]:
        """How many unfinished jobs there are, by state."""
        return dict(Counter(job.record.state.value for job in self.jobs.values() if not job.record.state.is_final))

    @property
    def unfinished_names(self) -> set[JobName]:
        """The (key, task) of every unfinished job."""
        return {name for name, job in self.jobs.items() if not job.record.state.is_final}

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
            await self._beats.after(budgets.ADOPT_INTERVAL - budgets.HEARTBEAT_IDLE, budgets.ADOPT_INTERVAL)
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
                log.warning("the spool of job %s can't be taken up: %s", name[0], error, extra={"job": name[0]})
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
                    spawn(self._group, self._give_outputs_back(kept))
            self._finished.add(name)
            return None
        request = await asyncio.to_thread(self._requests.read, *name)
        if request is None:
            return None  # it wasn't acknowledged and comes again
        submit = request.submit
        rebuilt = await asyncio.to_thread(self._rebuild, request, name[1], folder, kept)
        record = await self._tools.records.take_over(*name, self._epoch, rebuilt)
        if record is None:
            return None
        if record.state.is_final:
            await asyncio.to_thread(folder.write_record, record)
            self._finished.add(name)
            return None
        return Job(record, submit.job, folder, self._tools)

    async def _give_outputs_back(self, record: Record) -> None:
        """Put the outputs of a finished job on a bus that has lost them."""
        try:
            request = await asyncio.to_thread(self._requests.read, record.key, record.task)
            if request is not None:
                await self._tools.stager.collect(record, spec_of(request.submit.job, record))
        except (SlurmbusError, OSError) as error:
            log.warning("the outputs of job %s can't be given back: %s", record.key, error, extra={"job": record.key})

    def _rebuild(self, request: KeptRequest, task: int, folder: JobDir, kept: Record | None) -> Record:
        """Make the record of a job that the bus knows nothing of; its claims, Slurm and accounting tell the rest."""
        submit, job = request.submit, request.submit.job
        plan = folder.read_plan()
        staged = plan is not None
        fields = task_fields(job, task, self._array_size)
        if plan is not None and plan.array_index is not None:  # the size may have been another one then
            fields["array_base"] = task - plan.array_index
        record = Record(
            key=submit.key,
            site=submit.site,
            epoch=self._epoch,
            state=JobState.SUBMITTING if staged else JobState.ACCEPTED,
            maybe_submitted=staged,
            submits=int(staged),
            name=job.name,
            submitter=submit.submitter,
            request_sha256=request.sha256,
            signer=request.signer,
            created_at=min(time.time(), subjects.ulid_time(submit.key)),
            updated_at=time.time(),
            labels=job.labels,
            trace=job.trace,
            options=job.options,
            requeue=job.options.requeue,
            outputs_pending=bool(job.outputs),
            scheduler=self._tools.scheduler.kind,
            spool=str(folder.path),
            work_dir=str(folder.work_dir(job.work_base).path),
            **fields,
        )
        if kept is None:
            return record
        return msgspec.structs.replace(record, created_at=kept.created_at, cancel=kept.cancel, requeues=kept.requeues)

    async def accept(self, accepted: Accepted) -> None:
        """Keep a new request in the spool, then follow its job, or the tasks of its array."""
        if not self.jobs:  # start the scheduler's process while the files are being staged
            spawn(self._group, _warm_up(self._tools.scheduler))
        try:
            await asyncio.to_thread(self._keep, accepted)
        except SlurmbusError as error:
            for record in accepted.records:
                async with self._reserved((record.key, record.task)) as free:
                    if free:
                        await self._refuse(record, error)
            return
        gate = asyncio.Semaphore(budgets.ADOPT_AT_ONCE)

        async def take(record: Record) -> None:
            async with gate:
                await self._take(record, accepted.submit)

        await asyncio.gather(*(take(record) for record in accepted.records))

    def _keep(self, accepted: Accepted) -> None:
        """Make the request durable in the spool, and the folders of its jobs."""
        stored, key = accepted.stored, accepted.submit.key
        folders = [self._spool.job(key, record.task) for record in accepted.records]
        if not accepted.submit.job.tasks:
            folders[0].create(stored.data, stored.subject, dict(stored.headers))
            return
        request = StoredRequest(subject=stored.subject, headers=dict(stored.headers), data=stored.data)
        self._spool.array(key).create(request)
        self._spool.create_tasks(folders)

    async def _refuse(self, record: Record, error: SlurmbusError) -> None:
        await self._tools.records.write(
            msgspec.structs.replace(
                record, state=JobState.REJECTED, error_code=error.code, reason=error.message, hint=error.hint
            )
        )

    async def _take(self, record: Record, submit: Submit) -> None:
        name = (record.key, record.task)
        async with self._reserved(name) as free:
            if not free:
                return
            ours: Record | None = record
            if record.epoch != self._epoch:  # an agent before us made it and came no further
                ours = await self._tools.records.take_over(*name, self._epoch, None)
            if ours is not None and not ours.state.is_final:
                self._follow(Job(ours, submit.job, self._spool.job(*name), self._tools))

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

    # ------------------------------------------------------------------ controls

    async def cancel(self, key: str, task: int | None, asked: CancelAsked) -> bool:
        """Ask for the end of a job, of a whole array or of one of its tasks; comes back when that is durable.

        Returns:
            False when there is no such job.
        """
        jobs = await self._taken_up(key, task)
        await asyncio.gather(*(job.cancel(asked) for job in jobs))
        return bool(jobs)

    async def requeue(self, key: str, task: int | None, asked: RequeueAsked) -> bool:
        """Ask for another start of a job or of one task; comes back when that, or its refusal, is durable.

        Returns:
            False when there is no such job.
        """
        jobs = await self._taken_up(key, task)
        if task is None and any(job.record.tasks for job in jobs):
            message, hint = "the tasks of an array are requeued one by one", "name the task"
            refused = refusal(asked, NotRequeueable.code, message, hint)
            await self.refuse_control(key, None, refused)
            return True
        for job in jobs:
            await job.requeue(asked)
        return bool(jobs)

    async def owner(self, key: str, task: int | None) -> str | None:
        """Give the key that signed the request of an unfinished job; None when there is no such job."""
        jobs = await self._taken_up(key, task)
        return jobs[0].record.signer if jobs else None

    async def refuse_control(self, key: str, task: int | None, refused: ControlRefused) -> None:
        """Let whoever asked see that a control of an unfinished job was refused; of an array its first task says so."""
        jobs = sorted(await self._taken_up(key, task), key=lambda job: job.record.task)
        for job in jobs[:1]:
            await job.refuse_control(refused)

    async def _taken_up(self, key: str, task: int | None) -> list[Job]:
        """Give an unfinished job, or the tasks of an array that are; they are looked for in the spool, too."""
        known = self._followed(key, task)
        if not known or (task is None and known[0].record.tasks):  # of an array some may not have been taken up yet
            for name in await self._in_spool(key, task):
                if name not in self.jobs and name not in self._finished:
                    await self._look_at(name)
        return self._followed(key, task)

    async def _in_spool(self, key: str, task: int | None) -> list[JobName]:
        if task is not None:
            return [(key, task)]
        return [name for name in await asyncio.to_thread(self._spool.keys) if name[0] == key]

    def _followed(self, key: str, task: int | None) -> list[Job]:
        if task is not None:
            job = self.jobs.get((key, task))
            return [job] if job is not None else []
        return [job for (job_key, _), job in self.jobs.items() if job_key == key]

    def stray(self, job_id: int, slurm_name: str) -> None:
        """Hear of an unfinished job in Slurm that nobody follows; it may be the late twin of one that is over."""
        name = parse_slurm_name(slurm_name)
        if name in self._finished and (job_id, slurm_name) not in self._strays:
            self._strays.add((job_id, slurm_name))
            spawn(self._group, self._end_stray(job_id, slurm_name))

    async def _end_stray(self, job_id: int, slurm_name: str) -> None:
        in_array = split_name(slurm_name)[1] is not None
        cancel = self._tools.arrays.cancel if in_array and self._tools.arrays else self._tools.scheduler.cancel
        try:
            await cancel(job_id, slurm_name)
        except SchedulerError as error:
            log.warning("Slurm job %d is a late twin of %s and couldn't be cancelled: %s", job_id, slurm_name, error)
            self._strays.discard((job_id, slurm_name))
        else:
            self._audit.write("stray cancelled", job_id=job_id, name=slurm_name)


def _uses(job: Job, installation: Installation) -> bool:
    digest, wanted = installation.info.digest, job.environment
    if job.record.environment is not None:
        return job.record.environment == digest
    if isinstance(wanted, NamedEnvironment):  # it isn't known yet which one that is
        return True
    return isinstance(wanted, EnvironmentRef) and wanted.digest == digest


async def _warm_up(scheduler: Scheduler) -> None:
    with contextlib.suppress(SchedulerError):
        await scheduler.ping()
