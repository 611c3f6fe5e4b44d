"""Wires the parts of an agent; one task group owns all tasks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import platform
import re
import secrets
import time
from collections import Counter

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.config import AgentConfig
from slurmbus_agent.follower import SpoolFollower
from slurmbus_agent.intake import Accepted, Intake
from slurmbus_agent.job import Job, Tools
from slurmbus_agent.lease import Lease, LeaseLost, Role
from slurmbus_agent.link import LinkServer
from slurmbus_agent.linking import JobLinks
from slurmbus_agent.questions import Questions
from slurmbus_agent.records import Fenced, RecordStore
from slurmbus_agent.relay import Relay
from slurmbus_agent.scheduler.base import OutcomeUnknown, Scheduler, Unavailable
from slurmbus_agent.scheduler.factory import make_scheduler
from slurmbus_agent.spool import JobDir, Spool, SpoolError
from slurmbus_agent.staging import Stager
from slurmbus_agent.vitals import Pulse
from slurmbus_agent.watcher import Watcher
from slurmbus_protocol import codec
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import BusUnreachable, SlurmbusError
from slurmbus_protocol.messages import CancelAsked, Record, Submit
from slurmbus_protocol.signing import TrustedKeys
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import consumer_bus_id

log = logging.getLogger(__name__)

SPOOL_RETRY = 5.0
"""Seconds until an agent whose spool can't be used tries again."""


class Agent:
    """Serves one site until it is told to stop.

    Args:
        config: of the site.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        host = re.sub(r"[^a-z0-9-]", "-", platform.node().lower())[:40]
        self.agent_id = f"{host}-{secrets.token_hex(4)}"
        self.spool = Spool(config.spool_root)
        self._keys = TrustedKeys(config.trusted_keys)
        self._jobs: dict[tuple[str, int], Job] = {}
        self._jobs_changed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve, or stand by while another agent serves, until ``stop`` is set."""
        self._runner = await asyncio.to_thread(self.spool.prepare)
        self._audit = Audit(self.spool.root / "audit.log")
        scheduler = make_scheduler(
            self.config.scheduler, folder=self.spool.root / "local", slurm_conf=self.config.slurm_conf
        )
        bus = await self._connect(stop)
        if bus is None:
            return
        try:
            async with Bus(self.config.bus_settings(self.agent_id)) as blob_bus:
                await self._serve(bus, blob_bus, scheduler, stop)
        finally:
            await bus.__aexit__()
            await scheduler.aclose()

    async def _connect(self, stop: asyncio.Event) -> Bus | None:
        """Connect, however long the bus is away."""
        bus = Bus(self.config.bus_settings(self.agent_id))
        while not stop.is_set():
            try:
                return await bus.__aenter__()
            except BusUnreachable as error:
                log.warning("%s; trying again", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), budgets.BUS_RETRY[-1])
        return None

    async def _serve(self, bus: Bus, blob_bus: Bus, scheduler: Scheduler, stop: asyncio.Event) -> None:
        relay = Relay(bus, self.config.site)
        records = RecordStore(bus, self.config.site)
        pulse = Pulse(
            self.config.site,
            self.agent_id,
            health=lambda: scheduler.health,
            unfinished=self._unfinished,
            backlog=lambda: relay.waiting,
            alarms=lambda: _alarms(relay, records, self._audit),
        )
        lease = Lease(bus, self.config.site, self.agent_id, pulse.message)
        scheduler.lease_deadline = lambda: lease.deadline
        watcher = Watcher(scheduler, self.config.watch_interval or budgets.WATCH_INTERVAL)
        stager = Stager(blob_bus, self.spool, self._runner, self.config.python, here=scheduler.kind == "local")
        tools = Tools(records, scheduler, relay, watcher, stager)
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                leading = asyncio.create_task(self._lead_once(bus, lease, pulse, tools))
                await asyncio.wait({leading, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not leading.done():
                    leading.cancel()
                    await asyncio.gather(leading, return_exceptions=True)
                else:
                    leading.result()
                self._jobs.clear()
        finally:
            stopped.cancel()
            await lease.release()

    async def _lead_once(self, bus: Bus, lease: Lease, pulse: Pulse, tools: Tools) -> None:
        """Wait for the lease, then serve until it is lost."""
        await self._await_consumer(bus)
        await lease.acquire()
        log.info("site %s: serving as %s, epoch %d", self.config.site, self.agent_id, lease.epoch)
        try:
            await self._lead(bus, lease, pulse, tools)
        except* (LeaseLost, Fenced) as lost:
            log.warning("site %s: stepping down: %s", self.config.site, lost.exceptions[0])
        except* SpoolError as failed:
            log.error("site %s: %s; beginning again", self.config.site, failed.exceptions[0])  # noqa: TRY400
            await asyncio.sleep(SPOOL_RETRY)

    async def _await_consumer(self, bus: Bus) -> None:
        """Wait until a client has set the bus up: agents may not create streams or consumers."""
        told = False
        while True:
            try:
                if await consumer_bus_id(bus, self.config.site) is not None:
                    return
            except BusUnreachable as error:
                log.info("waiting for the bus: %s", error)
            if not told:
                log.info("waiting for a client to set the bus up for site %s", self.config.site)
                told = True
            await asyncio.sleep(0.5)

    async def _lead(self, bus: Bus, lease: Lease, pulse: Pulse, tools: Tools) -> None:
        local = tools.scheduler.kind == "local"
        links = LinkServer(
            JobLinks(self._jobs, tools.relay),
            self._secret,
            host="127.0.0.1" if local else "0.0.0.0",  # noqa: S104  # compute nodes dial in
            budget_bytes=budgets.LINK_BYTES,
            advertise=("127.0.0.1",) if local else (self.config.link_host,) if self.config.link_host else (),
            epoch=lease.epoch,
        )
        address = await links.start()
        try:
            async with asyncio.TaskGroup() as group:

                async def accept(accepted: Accepted) -> None:
                    await self._accept(accepted, tools, group)

                await self._take_over(lease.epoch, tools, group)
                # Only now: a runner that comes back finds its job.
                await asyncio.to_thread(self.spool.write_link, address)
                group.create_task(self._beat(lease, pulse))
                group.create_task(tools.watcher.run())
                group.create_task(SpoolFollower(lambda: list(self._jobs.values())).run())
                questions = Questions(
                    bus,
                    self.config.site,
                    scheduler=tools.scheduler,
                    spool=self.spool,
                    heartbeat=lambda: pulse.message(lease.epoch, Role.LEADER),
                )
                await questions.serve()
                intake = Intake(
                    bus,
                    self.config.site,
                    lease.epoch,
                    scheduler=tools.scheduler.kind,
                    bus_time=lambda: lease.bus_time,
                    keys=self._keys,
                    records=tools.records,
                    audit=self._audit,
                    accept=accept,
                    cancel=self._cancel,
                    spoiled=lambda: _count_bad(pulse),
                )
                group.create_task(intake.run())
        finally:
            await links.aclose()

    async def _beat(self, lease: Lease, pulse: Pulse) -> None:
        """Renew the lease at the pulse's interval, and at once when the first job comes."""
        while True:
            busy = bool(self._jobs)
            await lease.renew()
            pulse.bus_latency = lease.latency
            deadline = time.monotonic() + pulse.interval
            while (left := deadline - time.monotonic()) > 0 and (busy or not self._jobs):
                self._jobs_changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._jobs_changed.wait(), left)

    # ------------------------------------------------------------------ jobs

    async def _take_over(self, epoch: int, tools: Tools, group: asyncio.TaskGroup) -> None:
        """Take up every unfinished job whose spool is here, under our epoch."""
        for key, task in await asyncio.to_thread(self.spool.keys):
            folder = self.spool.job(key, task)
            try:
                request = await asyncio.to_thread(folder.read_request)
                if request is None:
                    continue  # the request wasn't acknowledged and comes again
                submit = codec.decode_as(request.data, Submit)
                record = await self._record_of(submit, request.data, folder, epoch, tools)
            except SlurmbusError as error:
                log.warning("the spool of job %s can't be taken up: %s", key, error)
                continue
            if record.state.is_final:
                continue
            record = await tools.records.write(msgspec.structs.replace(record, epoch=epoch))
            self._follow(Job(record, submit.job, folder, tools), group)

    async def _record_of(self, submit: Submit, request: bytes, folder: JobDir, epoch: int, tools: Tools) -> Record:
        """Read a job's record; when the bus lost it, begin again from the spool, where the claims are."""
        while True:
            try:
                record = await tools.records.read(submit.key)
                break
            except BusUnreachable as error:
                log.info("reading records: %s", error)
                await asyncio.sleep(budgets.BUS_RETRY[-1])
        if record is not None:
            return record
        now = time.time()
        return Record(
            key=submit.key,
            site=submit.site,
            epoch=epoch,
            state=JobState.SUBMITTING,
            maybe_submitted=True,
            submits=1,
            name=submit.job.name,
            submitter=submit.submitter,
            request_sha256=hashlib.sha256(request).hexdigest(),
            created_at=now,
            updated_at=now,
            labels=submit.job.labels,
            options=submit.job.options,
            requeue=submit.job.options.requeue,
            outputs_pending=bool(submit.job.outputs),
            scheduler=tools.scheduler.kind,
            spool=str(folder.path),
            work_dir=str(folder.work_dir(submit.job.work_base).path),
        )

    async def _accept(self, accepted: Accepted, tools: Tools, group: asyncio.TaskGroup) -> None:
        """Keep the request in the spool, then follow the job."""
        record, stored = accepted.record, accepted.stored
        if (record.key, record.task) in self._jobs:
            return
        if not self._jobs:  # start the scheduler's process while the files are being staged
            group.create_task(_warm_up(tools.scheduler))
        folder = self.spool.job(record.key, record.task)
        try:
            await asyncio.to_thread(folder.create, stored.data, stored.subject, dict(stored.headers))
        except SlurmbusError as error:
            await tools.records.write(
                msgspec.structs.replace(
                    record, state=JobState.REJECTED, error_code=error.code, reason=error.message, hint=error.hint
                )
            )
            return
        self._follow(Job(record, accepted.submit.job, folder, tools), group)

    def _follow(self, job: Job, group: asyncio.TaskGroup) -> None:
        name = (job.record.key, job.record.task)
        self._jobs[name] = job
        self._jobs_changed.set()

        async def live() -> None:
            try:
                await job.run()
            finally:
                if self._jobs.get(name) is job:
                    del self._jobs[name]

        group.create_task(live(), name=f"job {name[0]}")

    async def _cancel(self, key: str, asked: CancelAsked) -> bool:
        jobs = [job for (job_key, _), job in self._jobs.items() if job_key == key]
        for job in jobs:
            await job.cancel(asked)
        return bool(jobs)

    def _secret(self, key: str, task: int) -> bytes | None:
        job = self._jobs.get((key, task))
        return job.secret() if job else None

    def _unfinished(self) -> dict[str, int]:
        return dict(Counter(job.record.state.value for job in self._jobs.values() if not job.record.state.is_final))


async def _warm_up(scheduler: Scheduler) -> None:
    with contextlib.suppress(Unavailable, OutcomeUnknown):
        await scheduler.ping()


def _count_bad(pulse: Pulse) -> None:
    pulse.bad_messages += 1


def _alarms(relay: Relay, records: RecordStore, audit: Audit) -> tuple[str, ...]:
    alarms = [f"the bus takes no more {name}" for name in sorted(relay.full)]
    if audit.problem:
        alarms.append(audit.problem)
    if records.full:
        alarms.append("the bus takes no more records")
    return tuple(alarms)
