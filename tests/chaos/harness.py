"""A run: jobs and faults as the seed wants them, then the witnesses are heard."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from chaos import witnesses
from chaos.faults import COMMON, PlannedFault, Saboteur, plan_faults
from chaos.history import JobHistory, LeaseSighting, MissingPiece, Piece, RunHistory
from chaos.rig import LOGINS, SITE, USER, Rig
from chaos.steps import Plan, Steps, judge_jobs, plan_steps
from chaos.workload import PlannedJob, plan_jobs
from slurmbus.events import AgentStatus, Finished, Gap, Output, StateChanged
from slurmbus.session import Session
from slurmbus.settings import ConnectionSettings
from slurmbus.site import Site
from slurmbus_protocol.errors import BusFull, BusUnreachable
from slurmbus_protocol.messages import FileRef
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid

AT_ONCE = 120
"""Jobs that are followed at the same time."""
LOOK = 0.25
"""Seconds between two looks at the lease."""
SETTLE = 240.0
"""Seconds after the last fault within which every job must have ended: the longest job, and accounting's patience."""
READY = 60.0


@dataclass(frozen=True)
class Schedule:
    """What a seed stands for."""

    seed: int
    seconds: float
    jobs: Sequence[PlannedJob]
    faults: Sequence[PlannedFault]
    steps: Sequence[Plan] = ()


def plan(
    seed: int,
    seconds: float,
    *,
    jobs: int | None = None,
    kinds: Iterable[str] = COMMON,
    pause: tuple[float, float] = (1.0, 4.0),
    rate: float = 0.8,
    steps: int = 0,
) -> Schedule:
    """Derive jobs, faults and Dagster steps from a seed. `rate`: jobs a second."""
    rng = random.Random(seed)
    count = jobs if jobs is not None else int(seconds * rate)
    planned = plan_jobs(random.Random(rng.random()), count, seconds)
    faults = plan_faults(random.Random(rng.random()), seconds, kinds, pause=pause)
    return Schedule(seed, seconds, planned, faults, plan_steps(random.Random(rng.random()), steps))


class Run:
    """Carries a schedule out on a rig whose agents don't run yet.

    Args:
        rig: the system.
        schedule: what to do.
        progress: takes a line of text now and then.
    """

    def __init__(self, rig: Rig, schedule: Schedule, progress: Callable[[str], None]) -> None:
        self._rig = rig
        self._schedule = schedule
        self._progress = progress
        self._history = RunHistory(schedule.seed, time.time())
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._agents: list[AgentStatus] = []
        self._steps = Steps(rig.home, rig.folder, schedule.steps, random.Random(schedule.seed))
        self.saboteur = Saboteur(rig, self.leader, self._steps.kill_one)

    def leader(self) -> str | None:
        """Give the host of the agent that holds the lease, as far as it was seen."""
        return self._history.leases[-1].host if self._history.leases else None

    async def run(self) -> RunHistory:
        """Do it all, and give what the witnesses say."""
        async with Session(ConnectionSettings.of_site(self._rig.home, SITE)) as session:
            site = Site(session, SITE)
            await site.records(1)  # sets the bus up
            payload = await site.upload_bytes((Path(__file__).parent / "payload.py").read_bytes(), "payload.py")
            await asyncio.to_thread(self._rig.start_agents)
            watching = asyncio.create_task(self._watch_lease(site))
            minding = [asyncio.create_task(work()) for work in (self._supervise, self._mind_nodes)]
            try:
                await self._await_leader()
                with self._steps if self._schedule.steps else contextlib.nullcontext():
                    await self._disturb(site, payload)
            finally:
                for task in (watching, *minding):
                    task.cancel()
                for result in await asyncio.gather(watching, *minding, return_exceptions=True):
                    if not isinstance(result, asyncio.CancelledError):
                        self._history.problems.append(f"watching ended: {result!r}")
            self._history.faults = self.saboteur.done
            self._history.end = time.time()
            await self._hear_witnesses(session)
        return self._history

    async def _await_leader(self) -> None:
        async with asyncio.timeout(READY):
            while self.leader() is None:
                await asyncio.sleep(LOOK)

    async def _disturb(self, site: Site, payload: FileRef) -> None:
        self._history.begin = begin = time.time()
        histories = [JobHistory(job) for job in self._schedule.jobs]
        self._history.jobs = histories
        jobs = [asyncio.create_task(self._job(site, payload, job, begin), name=job.plan.id) for job in histories]
        faults = [asyncio.create_task(self._fault(fault, begin)) for fault in self._schedule.faults]
        telling = asyncio.create_task(self._tell(jobs))
        try:
            for result in await asyncio.gather(*faults, return_exceptions=True):
                if isinstance(result, BaseException):
                    self._history.problems.append(f"a fault couldn't be carried out: {result!r}")
            left = begin + self._schedule.seconds + SETTLE - time.time()
            await asyncio.wait(jobs, timeout=max(SETTLE, left))
            await self._await_steps()
        finally:
            for task in (*jobs, *faults, telling):
                task.cancel()
            await asyncio.gather(*jobs, *faults, telling, return_exceptions=True)

    async def _await_steps(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                while self._steps.running:
                    await asyncio.sleep(1.0)

    async def _tell(self, jobs: list[asyncio.Task[None]]) -> None:
        while True:
            await asyncio.sleep(15)
            done = sum(task.done() for task in jobs)
            submitted = sum(job.accepted is not None for job in self._history.jobs)
            faults = f"{len(self.saboteur.done)} of {len(self._schedule.faults)} faults"
            self._progress(f"{submitted} of {len(jobs)} jobs submitted, {done} ended, {faults}")

    async def _fault(self, fault: PlannedFault, begin: float) -> None:
        await asyncio.sleep(max(0.0, begin + fault.at - time.time()))
        await self.saboteur.carry_out(fault)

    # ------------------------------------------------------------------ one job

    async def _job(self, site: Site, payload: FileRef, job: JobHistory, begin: float) -> None:
        await asyncio.sleep(max(0.0, begin + job.plan.at - time.time()))
        async with self._gate:
            job.key = new_ulid()
            early = job.plan.cancel_after is not None and job.plan.cancel_after < 0
            if early:
                await self._cancel(site, job)
            job.submit_sent = time.time()
            await _until_taken(lambda: site.submit(job.plan.spec(payload), key=job.key))
            job.accepted = time.time()
            async with asyncio.TaskGroup() as group:
                if job.plan.cancel_after is not None and not early:
                    group.create_task(self._cancel_later(site, job, job.plan.cancel_after))
                try:
                    await self._follow(site, job, group)
                except Exception as error:  # noqa: BLE001 - whatever a reader is told instead of the end is evidence
                    job.problem = f"{type(error).__name__}: {error}"

    async def _cancel_later(self, site: Site, job: JobHistory, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._cancel(site, job)

    async def _cancel(self, site: Site, job: JobHistory) -> None:
        job.cancel_sent = time.time()
        await _until_taken(lambda: site.cancel(job.key, "chaos"))
        job.cancel_accepted = time.time()

    async def _follow(self, site: Site, job: JobHistory, group: asyncio.TaskGroup) -> None:
        heads: dict[tuple[int, str], int] = {}
        requeued = False
        while job.finished is None:
            try:
                async with aclosing(site.follow(job.key, after=dict(heads))) as events:  # type: ignore[arg-type]
                    async for event in events:
                        match event:
                            case Output(start=start, stream=stream, offset=offset, data=data):
                                job.pieces.append(Piece(start, stream, offset, data))
                                heads[start, stream] = offset + len(data)
                            case Gap(start=start, stream=stream, offset=offset, length=length, reason=reason):
                                job.gaps.append(MissingPiece(start, stream, offset, length, reason))
                                heads[start, stream] = offset + length
                            case StateChanged(record=record):
                                job.seen.append(record.state)
                                if record.state is JobState.RUNNING and job.plan.requeue and not requeued:
                                    requeued = True
                                    group.create_task(self._requeue(job, record.job_id))
                            case Finished(record=record):
                                job.finished = record
            except BusUnreachable:
                await asyncio.sleep(0.5)

    async def _requeue(self, job: JobHistory, job_id: int | None) -> None:
        await asyncio.sleep(job.plan.requeue_after or 0.0)
        command = ["scontrol", "requeue", str(job_id)]
        said = await asyncio.to_thread(lambda: self._rig.cluster.exec("ctld", command, user=USER, check=False))
        if said.exit_code == 0:
            job.requeues.append(time.time())

    # ------------------------------------------------------------------ agents

    async def _watch_lease(self, site: Site) -> None:
        while True:
            try:
                agents = await site.heartbeats_now()
            except BusUnreachable:
                agents = []
            self._agents = agents
            for status in agents:
                beat = status.heartbeat
                if beat.leader and not beat.released:
                    seen = LeaseSighting(time.time(), beat.agent_id, beat.host, beat.epoch, status.age)
                    last = self._history.leases[-1] if self._history.leases else None
                    if last is None or (last.agent_id, last.epoch) != (seen.agent_id, seen.epoch):
                        self._history.leases.append(seen)
            await asyncio.sleep(LOOK)

    async def _supervise(self) -> None:
        """Start an agent again that ended by itself, as a supervisor would, and note it: that is a fault of its own."""
        while True:
            await asyncio.sleep(1.0)
            for host in LOGINS:
                if host in self.saboteur.stopped_agents:
                    continue
                agent = self._rig.agents.by_host[host]
                code = agent.process.poll()
                if code is not None and host not in self.saboteur.stopped_agents:
                    tail = " / ".join(agent.log.splitlines()[-30:])
                    self._history.deaths.append(f"on {host} with code {code} at {time.time():.2f}: {tail}")
                    await asyncio.to_thread(agent.start)

    async def _mind_nodes(self) -> None:
        """Put nodes back to work that the controller took out of it, as the site's administrator would.

        It does so when a node refuses a job: one that runs there already and that the controller had forgotten.
        """
        while True:
            await asyncio.sleep(3.0)
            await asyncio.to_thread(self._rig.resume_nodes)

    # ------------------------------------------------------------------ afterwards

    async def _hear_witnesses(self, session: Session) -> None:
        history = self._history
        by_key = {job.key: job for job in history.jobs if job.key}
        self._progress("asking the witnesses")
        history.others = await witnesses.read_bus(await session.bus(), SITE, by_key)
        executions = await asyncio.to_thread(witnesses.executions, self._rig)
        rows = await asyncio.to_thread(witnesses.slurm_rows, self._rig)
        for job in history.jobs:
            job.executions = executions.get(job.plan.id, [])
            job.rows = rows.get(f"{job.plan.id}.{job.key}", [])
        await asyncio.to_thread(witnesses.read_spool, self._rig, by_key)
        await asyncio.to_thread(self._rig.keep_logs)
        if self._schedule.steps:
            history.steps = await asyncio.to_thread(self._steps.histories)
            for step in history.steps:
                step.problem = step.problem or judge_jobs(step, history.others, executions.get(step.id, []))


async def _until_taken(action: Callable[[], object]) -> None:
    """Repeat a request as a caller would whose bus is away; the same key makes that safe."""
    while True:
        try:
            await action()  # type: ignore[misc]
        except (BusUnreachable, BusFull):
            await asyncio.sleep(0.5)
        else:
            return
