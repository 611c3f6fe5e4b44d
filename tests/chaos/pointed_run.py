"""The second mode: at every labelled point in turn, the process that comes there is stopped and a fault is done."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chaos.faults import AT_A_POINT
from chaos.harness import LOOK, Run, Schedule
from chaos.history import FaultHistory, JobHistory
from chaos.points import POINTS, Point
from chaos.rig import LOGINS, Reached, Rig
from chaos.workload import Kind, PlannedJob
from slurmbus.site import Site
from slurmbus_protocol.messages import FileRef
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

REACH_SECONDS = 40.0
"""A takeover and the next attempt of whatever was to be done fit into this."""
CASE_SECONDS = 45.0
"""How long a case's job may take to end before the next case begins; whether it ends at all is judged afterwards."""
TAKEOVER_SECONDS = 45.0
ACTIONS = ("agent killed", "taken over", "controller killed", "bus killed", "login node cut off")
CHILD_ACTIONS = (*ACTIONS, "scheduler process killed")


@dataclass(frozen=True)
class Case:
    """One fault at one point."""

    point: Point
    action: str

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.action} at “{self.point.label}”"


def plan_cases(seed: int, count: int | None = None, labels: Sequence[str] = ()) -> list[Case]:
    """Give every point with every fault in the seed's order, or the first `count`: each point once before any twice."""
    rng = random.Random(seed)
    points = [point for point in POINTS if not labels or point.label in labels]
    queues = {point: rng.sample(_actions(point), len(_actions(point))) for point in points}
    cases: list[Case] = []
    while queues:
        for point in rng.sample(list(queues), len(queues)):
            cases.append(Case(point, queues[point].pop()))
            if not queues[point]:
                del queues[point]
    return cases[:count]


def _actions(point: Point) -> tuple[str, ...]:
    return CHILD_ACTIONS if point.child else ACTIONS


class PointRun(Run):
    """Carries cases out, one after the other, while another job keeps the lease short.

    Args:
        rig: the system, with agents that stop at points.
        seed: of the jobs.
        cases: what to do.
        progress: takes a line of text now and then.
        before: jobs and faults at random moments that come first, on the same system.
    """

    def __init__(
        self,
        rig: Rig,
        seed: int,
        cases: Sequence[Case],
        progress: Callable[[str], None],
        *,
        before: Schedule | None = None,
    ) -> None:
        super().__init__(rig, before or Schedule(seed, 0.0, [], []), progress)
        self._cases = cases
        self._faults: list[FaultHistory] = self.saboteur.done
        self._tasks: list[asyncio.Task[None]] = []

    async def _disturb(self, site: Site, payload: FileRef) -> None:
        self._history.begin = time.time()
        if self._schedule.jobs:
            await super()._disturb(site, payload)
        keeping = asyncio.create_task(self._keep_busy(site, payload))
        try:
            await self._settled()
            for number, case in enumerate(self._cases):
                self._progress(f"{number + 1} of {len(self._cases)}: {case}")
                try:
                    await self._carry_out(site, payload, number, case)
                except Exception as error:  # noqa: BLE001 - the other cases are worth having
                    self._history.problems.append(f"{case} couldn't be carried out: {error!r}")
            keeping.cancel()
            await asyncio.wait(self._tasks, timeout=CASE_SECONDS * 4)
        finally:
            keeping.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(keeping, *self._tasks, return_exceptions=True)

    async def _keep_busy(self, site: Site, payload: FileRef) -> None:
        number = 0
        while True:
            job = JobHistory(_job(f"k{number:03d}", 30.0))
            self._history.jobs.append(job)
            task = asyncio.create_task(self._job(site, payload, job, time.time()))
            self._tasks.append(task)
            await asyncio.wait([task], timeout=60)
            number += 1

    async def _carry_out(self, site: Site, payload: FileRef, number: int, case: Case) -> None:
        job: JobHistory | None = None
        if case.point.trigger == "takeover":
            job = self._submit(site, payload, _job(f"p{number:03d}", 12.0))
            await self._wait(lambda: job is not None and _runs(job), CASE_SECONDS)
        await asyncio.to_thread(self._rig.arm, case.point.label)
        match case.point.trigger:
            case "job":
                job = self._submit(site, payload, _job(f"p{number:03d}", 0.6))
            case "cancel":
                plan = _job(f"p{number:03d}", 25.0)
                job = self._submit(site, payload, replace(plan, kind=Kind.CANCELLED, cancel_after=1.5))
            case "takeover":
                await self._kill(self.saboteur._agent_host(leader=True))
            case "idle":
                pass
        reached = await asyncio.to_thread(self._rig.await_point, REACH_SECONDS)
        if reached is None:
            self._history.unreached.append((case.point.label, str(case)))
        else:
            entry = FaultHistory(f"{AT_A_POINT}{case.action}", case.point.label, time.time(), 0.0)
            self._faults.append(entry)
            try:
                await self._act(case, reached)
            finally:
                entry.end = time.time()
        await self._revive()
        if job is not None:
            await self._wait(lambda: job is None or job.finished is not None or bool(job.problem), CASE_SECONDS)
        await self._settled()

    def _submit(self, site: Site, payload: FileRef, plan: PlannedJob) -> JobHistory:
        job = JobHistory(plan)
        self._history.jobs.append(job)
        self._tasks.append(asyncio.create_task(self._job(site, payload, job, time.time()), name=plan.id))
        return job

    # ------------------------------------------------------------------ what is done while the process stands still

    async def _act(self, case: Case, reached: Reached) -> None:
        rig, host = self._rig, reached.host
        match case.action:
            case "agent killed":
                await self._kill(host)
            case "scheduler process killed":
                await asyncio.to_thread(rig.signal, host, reached.pid, signal.SIGKILL)
            case "taken over":
                await self._let_the_other_take_over(reached)
            case "controller killed":
                await asyncio.to_thread(rig.cluster.daemon, "kill", "slurmctld")
                await self._go_on(reached)
                await asyncio.sleep(1.5)
                await asyncio.to_thread(rig.cluster.daemon, "start", "slurmctld")
                await asyncio.to_thread(rig.wait_serving, "slurmctld")
            case "bus killed":
                await asyncio.to_thread(rig.bus.kill)
                await self._go_on(reached)
                await asyncio.sleep(1.5)
                await asyncio.to_thread(rig.bus.restart)
            case "login node cut off":
                await asyncio.to_thread(rig.cluster.disconnect, host)
                await self._go_on(reached)
                await asyncio.sleep(7.0)
                await asyncio.to_thread(rig.cluster.connect, host)
            case _:
                raise AssertionError(case.action)

    async def _go_on(self, reached: Reached) -> None:
        await asyncio.to_thread(self._rig.signal, reached.host, reached.pid, signal.SIGCONT)

    async def _let_the_other_take_over(self, reached: Reached) -> None:
        """Hold the whole agent still until another one leads, then let it go on where it was."""
        rig, epoch = self._rig, self._history.leases[-1].epoch
        if reached.agent is not None:
            await asyncio.to_thread(rig.signal, reached.host, reached.agent, signal.SIGSTOP)
        await self._revive(but=reached.host)
        taken = await self._wait(lambda: self._history.leases[-1].epoch > epoch, TAKEOVER_SECONDS)
        if not taken:
            self._history.deaths.append(f"nobody took over from {reached.host} within {TAKEOVER_SECONDS:.0f} s")
        await self._go_on(reached)
        if reached.agent is not None:
            await asyncio.to_thread(rig.signal, reached.host, reached.agent, signal.SIGCONT)

    async def _kill(self, host: str) -> None:
        self.saboteur.stopped_agents.add(host)
        await asyncio.to_thread(self._rig.agents.by_host[host].kill)

    async def _revive(self, but: str = "") -> None:
        """Start the agents again that were killed, as a supervisor would."""
        for host in LOGINS:
            if host in self.saboteur.stopped_agents and host != but:
                await asyncio.to_thread(self._rig.agents.by_host[host].start)
                self.saboteur.stopped_agents.discard(host)

    # ------------------------------------------------------------------ waiting

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(LOOK)
        return True

    async def _settled(self) -> None:
        """Wait until one agent leads and the other stands by."""

        def ready() -> bool:
            leading = [one.heartbeat.host for one in self._agents if one.heartbeat.leader and one.alive]
            standing = [one.heartbeat.host for one in self._agents if not one.heartbeat.leader and one.alive]
            return bool(leading) and any(host != leading[0] for host in standing)

        await self._wait(ready, TAKEOVER_SECONDS)


def _runs(job: JobHistory) -> bool:
    return bool(job.seen) and job.seen[-1] is JobState.RUNNING


def _job(name: str, seconds: float) -> PlannedJob:
    lines = {Stream.STDOUT: 40, Stream.STDERR: 10, Stream.MESSAGES: 10}
    return PlannedJob(id=name, kind=Kind.SHORT, at=0.0, seconds=seconds, lines=lines, output="out.txt")
