"""Wires the parts of an agent; one task group owns all tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import re
import secrets
import sys
import time
from collections.abc import Callable

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.expiry import Expiry
from slurmbus_agent.authority.files import AuthorityFiles
from slurmbus_agent.authority.guarding import Guard
from slurmbus_agent.authority.questions import KeyQuestions
from slurmbus_agent.authority.standing import Authority
from slurmbus_agent.board import LiveBoard
from slurmbus_agent.clock import SteadyClock
from slurmbus_agent.config import AgentConfig
from slurmbus_agent.environments.questions import EnvironmentQuestions
from slurmbus_agent.environments.service import Environments
from slurmbus_agent.environments.store import Store
from slurmbus_agent.environments.tidying import Tidying
from slurmbus_agent.follower import SpoolFollower
from slurmbus_agent.forgetting import Forgetting
from slurmbus_agent.guest.beats import Beats
from slurmbus_agent.guest.limits import in_force, kernel_cpu_seconds
from slurmbus_agent.guest.measuring import Measuring, controller_calls
from slurmbus_agent.guest.pace import Pace
from slurmbus_agent.guest.succession import Succession
from slurmbus_agent.intake import Intake
from slurmbus_agent.job import Tools
from slurmbus_agent.lease import Lease, LeaseLost, Role
from slurmbus_agent.link import LinkServer
from slurmbus_agent.link_tls import LinkKeys
from slurmbus_agent.link_wire import Traffic
from slurmbus_agent.linking import JobLinks
from slurmbus_agent.questions import Questions
from slurmbus_agent.records import Fenced, RecordStore
from slurmbus_agent.relay import Relay
from slurmbus_agent.roster import Roster
from slurmbus_agent.scheduler.base import Scheduler
from slurmbus_agent.scheduler.factory import make_scheduler
from slurmbus_agent.spool import Spool
from slurmbus_agent.staging import Stager
from slurmbus_agent.vitals import BytesMoved, Pulse
from slurmbus_agent.watcher import Watcher
from slurmbus_protocol.bus import ApiError, Bus
from slurmbus_protocol.errors import BusUnreachable, SlurmbusError
from slurmbus_protocol.streams import consumer_bus_id

log = logging.getLogger(__name__)

STEP_DOWN_PAUSE = 0.5
"""Seconds until an agent that stepped down stands by."""
LEAD_AGAIN = 5.0
"""Seconds until an agent that can't lead, because its spool can't be used, say, tries again."""


class Agent:
    """Serves one site until it is told to stop.

    Args:
        config: of the site.
        files: what says how much it may do.
        succession: the process's place in the line of agents.
        ready: called when the bus is reached, each time before it asks for the lease.
    """

    def __init__(
        self,
        config: AgentConfig,
        files: AuthorityFiles,
        succession: Succession,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._files = files
        self._succession = succession
        self._ready = ready
        self._clock = SteadyClock()
        self._pace = Pace()
        self._beats = Beats()
        self._traffic = Traffic()
        self._links: LinkServer | None = None
        host = re.sub(r"[^a-z0-9-]", "-", platform.node().lower())[:40]
        self.agent_id = f"{host}-{secrets.token_hex(4)}"
        self.spool = Spool(config.spool_root)
        self._forgetting: Forgetting | None = None
        self._pulse: Pulse | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve, or stand by while another agent serves, until ``stop`` is set.

        Raises:
            InvalidSetting: a policy can't be used, or the configuration.
            StoppedByFile: there is a stop file, or one came.
        """
        self._runner = await asyncio.to_thread(self.spool.prepare)
        self._audit = Audit(self.spool.root / "audit.log")
        self._authority = Authority(self.config, self._files, self._audit, self._clock)
        await asyncio.to_thread(self._authority.load)
        self._limits = in_force(self.config.limits, *self._authority.limits, kernel_cpu_seconds=kernel_cpu_seconds())
        self._guard = Guard(self._authority, self._audit, self._next_look, self._succession.end, self._succession.want)
        await self._guard.look()
        guarding = asyncio.create_task(self._guard.run())
        try:
            await self._run(stop)
        finally:
            guarding.cancel()
        if self._guard.words:
            raise self._guard.stopped()

    async def _next_look(self) -> None:
        interval = self._pulse.interval if self._pulse else 0.0
        await self._beats.after(budgets.AUTHORITY_LOOK, interval + budgets.AUTHORITY_LOOK)

    async def _run(self, stop: asyncio.Event) -> None:
        self._roster = Roster(self.spool, self._audit, self._beats, self.config.array_size)
        self._link_keys, scheduler = await asyncio.gather(
            LinkKeys.make(),
            asyncio.to_thread(
                make_scheduler,
                self.config.scheduler,
                folder=self.spool.root / "local",
                slurm_conf=self.config.slurm_conf,
                limits=self._limits,
            ),
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
        site = self.config.site
        relay = Relay(bus, site, guard=lambda: lease.held)
        records = RecordStore(bus, site, guard=lambda: lease.held)
        pulse = Pulse(
            site,
            self.agent_id,
            health=lambda: scheduler.health,
            unfinished=lambda: self._roster.unfinished,
            backlog=lambda: relay.waiting,
            alarms=lambda: (
                *_alarms(bus, relay, records, self._audit),
                *(self._forgetting.alarms if self._forgetting else ()),
                *self._authority.alarms,
                *((self._guard.words,) if self._guard.words else ()),
            ),
            authority_expires_at=lambda: self._authority.expires_at,
            measuring=self._measuring(scheduler),
            bytes_moved=lambda: self._bytes_moved(bus, blob_bus),
            beats=self._beats,
            handovers=self._succession.heritage.handovers,
        )
        self._pulse = pulse
        lease = Lease(
            bus,
            site,
            self.agent_id,
            pulse.message,
            lambda: self._is_same_bus(bus),
            self._succession.looks_again,
        )
        scheduler.lease_deadline = lambda: lease.deadline
        watcher = Watcher(
            scheduler, self.config.watch_interval or budgets.WATCH_INTERVAL, self._roster.stray, self._pace
        )
        local = scheduler.kind == "local"
        environments = Environments(
            blob_bus,
            Store(self.config.environments_root),
            self.config.environments,
            self.spool.check_room,
            (sys.executable,) if local else (self.config.python,),
        )
        self._tidying = Tidying(
            environments,
            self.config.retention,
            users=self._roster.users,
            guard=lambda: lease.held,
            audit=self._audit,
        )
        stager = Stager(blob_bus, self.spool, self._runner, self.config.python, environments, here=local)
        tools = Tools(records, scheduler, relay, watcher, stager, seal_key=self.config.seal_key)
        questions = Questions(
            bus,
            site,
            scheduler=scheduler,
            spool=self.spool,
            heartbeat=lambda: pulse.message(lease.epoch, Role.LEADER),
            freshen=self._authority.freshen,
            leading=lambda: lease.held,
        )
        await questions.serve()
        expiry = Expiry(lambda: lease.bus_time, self._clock)
        await EnvironmentQuestions(
            bus,
            site,
            environments,
            self._tidying,
            users=self._roster.users,
            unused_days=self.config.retention.environments_days,
            authority=self._authority,
            expiry=expiry,
            audit=self._audit,
            leading=lambda: lease.held,
        ).serve()
        await KeyQuestions(
            bus,
            site,
            self._authority,
            expiry=expiry,
            audit=self._audit,
            leading=lambda: lease.held,
        ).serve()
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
        finally:
            stopped.cancel()
            await environments.aclose()
            await scheduler.aclose()  # nothing of this agent reaches Slurm once another one leads
            await lease.release()

    async def _lead_once(self, bus: Bus, lease: Lease, pulse: Pulse, tools: Tools) -> None:
        """Wait for the lease, then serve until it is lost."""
        self._bus_id = await self._await_consumer(bus)
        await asyncio.to_thread(self._ready)
        # Whatever was known of sequences may be another bus's, or have been changed by another agent.
        tools.records.reset()
        tools.relay.reset()
        pulse.arriving = True
        try:
            await lease.acquire(await asyncio.to_thread(self.spool.last_epoch))
            log.info("site %s: serving as %s, epoch %d", self.config.site, self.agent_id, lease.epoch)
            await self._lead(bus, lease, pulse, tools)
        except* (LeaseLost, Fenced) as lost:
            log.warning("site %s: stepping down: %s", self.config.site, _first(lost))
            await asyncio.sleep(STEP_DOWN_PAUSE)
        except* SlurmbusError as failed:
            log.error("site %s: %s; beginning again", self.config.site, _first(failed))  # noqa: TRY400
            await asyncio.sleep(LEAD_AGAIN)
        finally:
            self._roster.end()

    async def _await_consumer(self, bus: Bus) -> str:
        """Wait until a client has set the bus up, and give its id: agents may not create streams or consumers."""
        told = False
        while True:
            try:
                bus_id = await consumer_bus_id(bus, self.config.site)
                if bus_id is not None:
                    return bus_id
            except (BusUnreachable, ApiError) as error:
                log.info("waiting for the bus: %s", error)
            if not told:
                log.info("waiting for a client to set the bus up for site %s", self.config.site)
                told = True
            await asyncio.sleep(0.5)

    async def _is_same_bus(self, bus: Bus) -> bool:
        return await consumer_bus_id(bus, self.config.site) == self._bus_id

    async def _watch_bus(self, bus: Bus) -> None:
        """Look after every new connection whether the bus behind it is another one.

        Raises:
            LeaseLost: it is, and nothing that was known of it holds.
        """
        seen = bus.connections
        while True:
            seen = await bus.next_connection(seen)
            if await self._await_consumer(bus) != self._bus_id:
                raise LeaseLost("the bus is another one")

    async def _lead(self, bus: Bus, lease: Lease, pulse: Pulse, tools: Tools) -> None:
        local = tools.scheduler.kind == "local"
        board = LiveBoard(self._pace)
        links = LinkServer(
            JobLinks(self._roster.jobs, tools.relay, board),
            self._roster.secret,
            host="127.0.0.1" if local else "0.0.0.0",  # noqa: S104  # compute nodes dial in
            budget_bytes=budgets.LINK_BYTES,
            advertise=("127.0.0.1",) if local else (self.config.link_host,) if self.config.link_host else (),
            epoch=lease.epoch,
            traffic=self._traffic,
            keys=self._link_keys,
        )
        self._links = links
        address = await links.start()
        try:
            async with asyncio.TaskGroup() as group:
                self._roster.begin(lease.epoch, tools, group)
                group.create_task(self._beat(lease, pulse))
                group.create_task(self._watch_bus(bus))
                await self._roster.take_over(self._bus_id)
                pulse.arriving = False
                # Only now: a runner that comes back finds its job.
                await asyncio.to_thread(self.spool.write_link, address)
                group.create_task(tools.watcher.run())
                group.create_task(board.run())
                following = SpoolFollower(self._roster.jobs.values, board, self._roster.changed, self._pace)
                group.create_task(following.run())
                group.create_task(self._roster.adopt())
                group.create_task(self._forget(bus, lease))
                group.create_task(self._tidying.run())
                intake = Intake(
                    bus,
                    self.config.site,
                    lease.epoch,
                    scheduler=tools.scheduler.kind,
                    bus_time=lambda: lease.bus_time,
                    authority=self._authority,
                    records=tools.records,
                    audit=self._audit,
                    accept=self._roster.accept,
                    controls=self._roster,
                    unfinished=lambda: self._roster.unfinished_names,
                    spoiled=lambda: _count_bad(pulse),
                    array_size=self.config.array_size,
                    clock=self._clock,
                )
                group.create_task(intake.run())
        finally:
            await links.aclose()
            self._links = None

    def _measuring(self, scheduler: Scheduler) -> Measuring:
        return Measuring(
            self._limits,
            footprint=lambda: scheduler.footprint,
            calls=lambda: controller_calls(scheduler.health, self._limits),
            stat_calls=lambda: self.spool.metadata_calls,
            pace=self._pace,
            judged=self._succession.judged,
        )

    def _bytes_moved(self, *buses: Bus) -> BytesMoved:
        traffic = [bus.traffic for bus in buses]
        return BytesMoved(
            bus_in=sum(received for received, _ in traffic),
            bus_out=sum(sent for _, sent in traffic),
            link_in=self._traffic.received,
            link_out=self._traffic.sent,
            link_connections=self._links.connections if self._links else 0,
        )

    async def _forget(self, bus: Bus, lease: Lease) -> None:
        self._forgetting = Forgetting(
            bus,
            self.config.site,
            self.spool,
            self.config.retention,
            in_use=self._roster.jobs.__contains__,
            guard=lambda: lease.held,
            audit=self._audit,
        )
        await self._forgetting.run()

    async def _beat(self, lease: Lease, pulse: Pulse) -> None:
        """Renew the lease at the pulse's interval, soon after a failure, and at once when the first job comes."""
        jobs, changed = self._roster.jobs, self._roster.changed
        while True:
            busy = bool(jobs)
            pause = pulse.interval if await lease.renew() else budgets.RENEW_AGAIN
            pulse.bus_latency = lease.latency
            deadline = time.monotonic() + pause
            while (left := deadline - time.monotonic()) > 0 and (busy or not jobs):
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await changed.wait()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _count_bad(pulse: Pulse) -> None:
    pulse.bad_messages += 1


def _alarms(bus: Bus, relay: Relay, records: RecordStore, audit: Audit) -> tuple[str, ...]:
    alarms = [f"the bus takes no more {name}" for name in sorted(relay.full)]
    if bus.problem:
        alarms.append(f"the bus: {bus.problem}")
    if audit.problem:
        alarms.append(audit.problem)
    if records.full:
        alarms.append("the bus takes no more records")
    return tuple(alarms)
