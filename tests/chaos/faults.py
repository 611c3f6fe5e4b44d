"""What is done to the system: each fault by its kind, for how long, and how it is taken back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from chaos.history import FaultHistory
from chaos.rig import LOGINS, MIN_JOB_AGE, Rig

LEASE_SECONDS = 6.0
"""Of a leader that has jobs: three heartbeats of 2 s. A freeze that shall be noticed lasts longer."""


@dataclass(frozen=True)
class PlannedFault:
    """One fault, as the seed wants it."""

    kind: str
    at: float
    """Seconds after the run's begin."""
    seconds: float
    """How long its cause lasts."""
    choice: float
    """Between 0 and 1: decides what the kind leaves open (which host, which way, how far)."""


class Saboteur:
    """Does one fault at a time to each part of the system.

    Args:
        rig: the system.
        leader: gives the host of the agent that holds the lease, as far as it is known.
        kill_step: kills a running Dagster step some seconds later, and says which.
    """

    def __init__(
        self, rig: Rig, leader: Callable[[], str | None], kill_step: Callable[[float], str | None] | None = None
    ) -> None:
        self._rig = rig
        self._leader = leader
        self._kill_step = kill_step
        self._locks: dict[str, asyncio.Lock] = {}
        self.done: list[FaultHistory] = []
        self.stopped_agents: set[str] = set()
        """Hosts whose agent was killed on purpose and isn't started again yet."""

    async def carry_out(self, fault: PlannedFault) -> None:
        """Do it, keep it up, take it back. Nothing of one part is disturbed twice at the same time."""
        kind = KINDS[fault.kind]
        async with contextlib.AsyncExitStack() as held:
            for part in sorted(kind.parts):
                await held.enter_async_context(self._locks.setdefault(part, asyncio.Lock()))
            entry = FaultHistory(fault.kind, "", time.time(), 0.0)
            self.done.append(entry)
            try:
                entry.target = await kind.action(self, fault)
            except Exception as error:
                entry.note = f"failed: {error!r}"
                raise
            finally:
                entry.end = time.time()

    async def _do(self, action: Callable[[], object]) -> None:
        await asyncio.to_thread(action)

    def _agent_host(self, *, leader: bool) -> str:
        host = self._leader() or LOGINS[0]
        return host if leader else next(name for name in LOGINS if name != host)

    # ------------------------------------------------------------------ agents

    async def _kill_agent(self, fault: PlannedFault, *, leader: bool) -> str:
        host = self._agent_host(leader=leader)
        agent = self._rig.agents.by_host[host]
        self.stopped_agents.add(host)
        await self._do(agent.kill)
        killed = time.time()
        await asyncio.sleep(fault.seconds)
        await self._do(agent.start)
        self.stopped_agents.discard(host)
        return f"{host} after {time.time() - killed:.1f} s started again"

    async def _kill_both_agents(self, fault: PlannedFault, *, accounting: bool = False) -> str:
        """Leave the site without any agent for longer than the controller remembers finished jobs."""
        agents = self._rig.agents.by_host
        self.stopped_agents |= set(agents)
        for agent in agents.values():
            await self._do(agent.kill)
        if accounting:
            await self._do(lambda: self._rig.cluster.daemon("kill", "slurmdbd"))
        await asyncio.sleep(fault.seconds)
        if accounting:  # the agents come while the controller still holds what accounting hasn't heard
            await self._do(lambda: self._rig.cluster.daemon("start", "slurmdbd"))
        for host, agent in agents.items():
            await self._do(agent.start)
            self.stopped_agents.discard(host)
        if accounting:
            await self._do(lambda: self._rig.wait_serving("slurmdbd"))
        return ", ".join(agents)

    async def _stop_agent(self, fault: PlannedFault) -> str:
        host = self._agent_host(leader=True)
        agent = self._rig.agents.by_host[host]
        self.stopped_agents.add(host)
        await self._do(agent.stop)
        await asyncio.sleep(fault.seconds)
        await self._do(agent.start)
        self.stopped_agents.discard(host)
        return host

    async def _freeze_agent(self, fault: PlannedFault, *, leader: bool) -> str:
        host = self._agent_host(leader=leader)
        process = self._rig.agents.by_host[host].process
        pid = await asyncio.to_thread(lambda: process.host_pid)
        pids = [pid]
        if fault.choice < 0.5:  # with its child, or without
            pids += await asyncio.to_thread(self._rig.children, host, pid)
        for number in pids:
            await self._do(lambda number=number: self._rig.signal(host, number, signal.SIGSTOP))  # type: ignore[misc]
        await asyncio.sleep(fault.seconds)
        for number in reversed(pids):
            await self._do(lambda number=number: self._rig.signal(host, number, signal.SIGCONT))  # type: ignore[misc]
        return f"{host}, {len(pids)} processes"

    async def _kill_child(self) -> str:
        host = self._agent_host(leader=True)
        process = self._rig.agents.by_host[host].process
        pid = await asyncio.to_thread(lambda: process.host_pid)
        children = await asyncio.to_thread(self._rig.children, host, pid)
        for number in children:
            await self._do(lambda number=number: self._rig.signal(host, number, signal.SIGKILL))  # type: ignore[misc]
        return f"{host}, {len(children)} processes"

    async def _jump_clock(self, fault: PlannedFault) -> str:
        host = self._agent_host(leader=True)
        seconds = int((fault.choice - 0.5) * 2 * 3 * 86400)
        await self._do(lambda: self._rig.set_clock(host, seconds))
        await asyncio.sleep(fault.seconds)
        await self._do(lambda: self._rig.set_clock(host, 0))
        return f"{host} by {seconds} s"

    # ------------------------------------------------------------------ the bus

    async def _kill_bus(self, fault: PlannedFault) -> str:
        await self._do(self._rig.bus.kill)
        await asyncio.sleep(fault.seconds)
        await self._do(self._rig.bus.restart)
        return "nats-server"

    async def _empty_bus(self, fault: PlannedFault) -> str:
        await self._do(self._rig.bus.kill)
        await asyncio.sleep(fault.seconds)
        await self._do(self._rig.bus.restart_empty)
        return "nats-server"

    async def _freeze_bus(self, fault: PlannedFault) -> str:
        await self._do(self._rig.bus.freeze)
        await asyncio.sleep(fault.seconds)
        await self._do(self._rig.bus.thaw)
        return "nats-server"

    # ------------------------------------------------------------------ the network

    async def _cut_both_ways(self, fault: PlannedFault, hosts: tuple[str, ...]) -> str:
        host = self._pick(fault, hosts)
        await self._do(lambda: self._rig.cluster.disconnect(host))
        await asyncio.sleep(fault.seconds)
        await self._do(lambda: self._rig.cluster.connect(host))
        return host

    async def _cut_one_way(self, fault: PlannedFault, chain: str, hosts: tuple[str, ...]) -> str:
        host = self._pick(fault, hosts)
        await self._do(lambda: self._rig.cut(host, chain))
        await asyncio.sleep(fault.seconds)
        await self._do(lambda: self._rig.mend(host, chain))
        return host

    def _pick(self, fault: PlannedFault, hosts: tuple[str, ...]) -> str:
        names = {"leader": self._agent_host(leader=True), "standby": self._agent_host(leader=False)}
        host = hosts[int(fault.choice * len(hosts)) % len(hosts)]
        return names.get(host, host)

    # ------------------------------------------------------------------ Slurm

    async def _kill_daemon(self, fault: PlannedFault, name: str) -> str:
        await self._do(lambda: self._rig.cluster.daemon("kill", name))
        await asyncio.sleep(fault.seconds)
        await self._do(lambda: self._rig.cluster.daemon("start", name))
        await self._do(lambda: self._rig.wait_serving(name))
        return name

    async def _repeat_starts(self, fault: PlannedFault) -> str:
        """Have the controller forget that jobs were started, so that it starts them once more on another node."""
        rig = self._rig
        rig.draining = True
        try:
            await self._do(lambda: rig.set_nodes("c1,c2", "drain"))
            await self._do(rig.await_save)
            await self._do(lambda: rig.set_nodes("c1", "resume"))
            await asyncio.sleep(1.0 + fault.choice)  # what waited starts on c1, and isn't saved yet
            await self._do(lambda: rig.cluster.daemon("kill", "slurmctld"))
            await asyncio.sleep(fault.seconds)
            await self._do(lambda: rig.cluster.daemon("start", "slurmctld"))
            await self._do(lambda: rig.wait_serving("slurmctld"))
            await self._do(lambda: rig.set_nodes("c2", "resume"))
            await asyncio.sleep(2.0)
        finally:
            await self._do(lambda: rig.set_nodes("c1,c2", "resume"))
            rig.draining = False
        return "slurmctld, starts on c1"

    async def _freeze_controller(self, fault: PlannedFault) -> str:
        await self._do(lambda: self._rig.cluster.daemon("freeze", "slurmctld"))
        await asyncio.sleep(fault.seconds)
        await self._do(lambda: self._rig.cluster.daemon("thaw", "slurmctld"))
        await self._do(lambda: self._rig.wait_serving("slurmctld"))
        return "slurmctld"

    async def _kill_node(self, fault: PlannedFault) -> str:
        await self._do(lambda: self._rig.cluster.kill_host("c2"))
        await asyncio.sleep(fault.seconds)
        await self._do(lambda: self._rig.cluster.start_host("c2"))
        return "c2"

    # ------------------------------------------------------------------ the rest

    async def _fill_disk(self, fault: PlannedFault) -> str:
        await self._do(self._rig.fill_disk)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await self._do(self._rig.free_disk)
        return "spool"

    async def _kill_dagster_step(self, fault: PlannedFault) -> str:
        kill = self._kill_step
        step = None if kill is None else await asyncio.to_thread(kill, fault.seconds)
        return step or "there was no step"


@dataclass(frozen=True)
class FaultKind:
    """How often, how long, and what."""

    weight: float
    shortest: float
    longest: float
    parts: tuple[str, ...]
    """Faults of the same part never overlap."""
    action: Callable[[Saboteur, PlannedFault], Awaitable[str]]
    controller: bool = False
    """Whether Slurm's controller can forget, delay or repeat something by it."""


STEP_KILLED = "Dagster step killed"
EMPTY_BUS = "bus replaced by an empty one"
LONGER_THAN_MEMORY = (MIN_JOB_AGE + 2.0, MIN_JOB_AGE + 8.0)
LONGER_THAN_LEASE = (LEASE_SECONDS + 2, LEASE_SECONDS + 8)

KINDS: dict[str, FaultKind] = {
    "agent killed (leader)": FaultKind(3, 0.2, 10, ("agents",), lambda s, f: s._kill_agent(f, leader=True)),
    "agent killed (standby)": FaultKind(1, 0.2, 4, ("agents",), lambda s, f: s._kill_agent(f, leader=False)),
    "both agents killed": FaultKind(1, *LONGER_THAN_MEMORY, ("agents",), lambda s, f: s._kill_both_agents(f)),
    "both agents and accounting killed": FaultKind(
        1, *LONGER_THAN_MEMORY, ("agents", "accounting"), lambda s, f: s._kill_both_agents(f, accounting=True)
    ),
    "agent stopped": FaultKind(1, 0.2, 4, ("agents",), lambda s, f: s._stop_agent(f)),
    "agent frozen (leader)": FaultKind(
        2, *LONGER_THAN_LEASE, ("agents",), lambda s, f: s._freeze_agent(f, leader=True)
    ),
    "agent frozen shortly": FaultKind(1, 0.5, 4, ("agents",), lambda s, f: s._freeze_agent(f, leader=True)),
    "agent frozen (standby)": FaultKind(0.5, 2, 9, ("agents",), lambda s, f: s._freeze_agent(f, leader=False)),
    "scheduler process killed": FaultKind(2, 0, 0, ("agents",), lambda s, _: s._kill_child()),
    "agent's clock jumps": FaultKind(1, 3, 8, ("agents",), lambda s, f: s._jump_clock(f)),
    "bus killed": FaultKind(2, 0.2, 8, ("bus",), lambda s, f: s._kill_bus(f)),
    "bus frozen": FaultKind(1.5, 1, 14, ("bus",), lambda s, f: s._freeze_bus(f)),
    EMPTY_BUS: FaultKind(2, 0.2, 4, ("bus",), lambda s, f: s._empty_bus(f)),
    "login node cut off": FaultKind(
        1.5, 2, 16, ("agents",), lambda s, f: s._cut_both_ways(f, ("leader", "leader", "standby"))
    ),
    "login node deaf": FaultKind(1, 2, 14, ("agents",), lambda s, f: s._cut_one_way(f, "INPUT", ("leader",))),
    "login node mute": FaultKind(1, 2, 14, ("agents",), lambda s, f: s._cut_one_way(f, "OUTPUT", ("leader",))),
    "compute node cut off": FaultKind(1, 2, 9, ("nodes",), lambda s, f: s._cut_both_ways(f, ("c1", "c2"))),
    "compute node deaf": FaultKind(0.5, 2, 9, ("nodes",), lambda s, f: s._cut_one_way(f, "INPUT", ("c1", "c2"))),
    "compute node mute": FaultKind(0.5, 2, 9, ("nodes",), lambda s, f: s._cut_one_way(f, "OUTPUT", ("c1", "c2"))),
    "controller cut off": FaultKind(
        1, 2, 9, ("controller",), lambda s, f: s._cut_both_ways(f, ("ctld",)), controller=True
    ),
    "controller killed": FaultKind(
        3, 0.2, 8, ("controller",), lambda s, f: s._kill_daemon(f, "slurmctld"), controller=True
    ),
    "controller repeats starts": FaultKind(
        1.5, 0.1, 1.5, ("controller", "nodes"), lambda s, f: s._repeat_starts(f), controller=True
    ),
    "controller frozen": FaultKind(2, 2, 16, ("controller",), lambda s, f: s._freeze_controller(f), controller=True),
    "accounting killed": FaultKind(1.5, 2, 25, ("accounting",), lambda s, f: s._kill_daemon(f, "slurmdbd")),
    "compute node killed": FaultKind(1, 1, 25, ("nodes",), lambda s, f: s._kill_node(f), controller=True),
    "disk full": FaultKind(0.5, 2, 8, ("disk",), lambda s, f: s._fill_disk(f)),
    STEP_KILLED: FaultKind(2, 0, 6, ("step",), lambda s, f: s._kill_dagster_step(f)),
}


COMMON = [name for name in KINDS if name != EMPTY_BUS]
"""What happens to everybody sooner or later; a bus that lost its data has a mode of its own."""
AT_A_POINT = "at a point: "
"""Faults of the second mode are told by their kind after this."""


def confuses_controller(kind: str) -> bool:
    """Tell whether Slurm's controller may forget, delay or repeat something by a fault of this kind."""
    name = kind.removeprefix(AT_A_POINT)
    return name in KINDS and KINDS[name].controller


def may_double_a_submit(kind: str) -> bool:
    """Tell whether a twin may come of a fault of this kind in spite of every look-up.

    The controller may forget; or a submit was checked against the lease, and left only after somebody else had taken
    over, because its process or its network stood still in between. Nobody can look that up, and the claim ends it.
    """
    return confuses_controller(kind) or any(word in kind for word in ("frozen", "taken over", "login node"))


def plan_faults(
    rng: random.Random, seconds: float, kinds: Iterable[str], *, pause: tuple[float, float] = (1.0, 4.0)
) -> list[PlannedFault]:
    """Give faults for a run: mostly one after the other, every fourth into the one before it."""
    names = list(kinds)
    weights = [KINDS[name].weight for name in names]
    found: list[PlannedFault] = []
    now = 3.0
    while now < seconds:
        name = rng.choices(names, weights)[0]
        kind = KINDS[name]
        length = round(rng.uniform(kind.shortest, kind.longest), 3)
        found.append(PlannedFault(name, round(now, 3), length, round(rng.random(), 6)))
        apart = rng.uniform(*pause)
        now += rng.uniform(0, length) if rng.random() < 0.25 else length + apart
    return found
