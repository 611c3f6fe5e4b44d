"""What is known at this moment of buses, agents and jobs: bounded, in memory, without input or output."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from slurmbus_protocol.messages import Heartbeat, Record

MAX_JOBS = 5000
"""Jobs that are kept; of more, those that ended first are dropped. 5,000 records take about 20 MB."""
KEPT_ENDED = 500
"""Jobs that have ended and are kept even if all the room is taken by those that haven't: the newest."""
MAX_AGENTS = 8
"""Agents that are kept of a site: a restarted agent has another id, and its old one stays on the bus."""
MAX_BEATS = 120
"""Heartbeats that are remembered of each agent: four minutes while there are jobs, twenty when it is idle."""
LATE_FACTOR = 1.5
"""A heartbeat is late when it is this many intervals old, and GRACE seconds more."""
GRACE = 1.0


class BusName(NamedTuple):
    """Names a bus in the picture."""

    bus: str


class AgentName(NamedTuple):
    """Names an agent in the picture."""

    site: str
    agent_id: str


class JobName(NamedTuple):
    """Names a job, or a task of an array, in the picture."""

    site: str
    key: str
    task: int


Name = BusName | AgentName | JobName


@dataclass(frozen=True, slots=True)
class BusView:
    """One bus, and how this process reaches it."""

    name: str
    """Its address, or the home whose server it is."""
    sites: tuple[str, ...] = ()
    """Those that the home expects there."""
    reachable: bool = False
    problem: str = ""
    """Why it isn't reachable."""
    since: float = 0.0
    """Since when it has been reachable, or not; this machine's clock."""
    round_trip: float | None = None
    """Seconds of the last question to it and back."""
    clock_ahead: float = 0.0
    """Seconds by which its clock is ahead of this machine's."""


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat of an agent, as its line shows it."""

    at: float
    """When the bus stored it, by this machine's clock."""
    interval: float
    leader: bool
    bus_latency: float | None
    scheduler_latency: float | None


@dataclass(slots=True)
class AgentView:
    """One agent: its last heartbeat, and those before."""

    bus: str
    heartbeat: Heartbeat
    at: float
    """When the bus stored it, by this machine's clock."""
    leader: bool
    beats: deque[Beat] = field(default_factory=lambda: deque(maxlen=MAX_BEATS))

    @property
    def name(self) -> AgentName:
        """How the picture calls it."""
        return AgentName(self.heartbeat.site, self.heartbeat.agent_id)

    def age(self, now: float) -> float:
        """Seconds since the last heartbeat."""
        return max(0.0, now - self.at)

    def is_heard(self, now: float) -> bool:
        """True while its heartbeats come, if late."""
        return self.condition(now) in {"alive", "late"}

    def condition(self, now: float) -> str:
        """Tell how it is: ``alive``, ``late``, ``silent`` (its lease is over) or ``stopped`` (on purpose)."""
        if self.heartbeat.released:
            return "stopped"
        age = self.age(now)
        if age <= LATE_FACTOR * self.heartbeat.interval + GRACE:
            return "alive"
        return "late" if age <= self.heartbeat.lease_seconds else "silent"


class Picture:
    """Buses, agents and jobs by their names. Whoever changes it is told what has changed."""

    def __init__(self) -> None:
        self.buses: dict[str, BusView] = {}
        self.agents: dict[AgentName, AgentView] = {}
        self.jobs: dict[JobName, Record] = {}
        self._bus_of_job: dict[JobName, str] = {}
        self._over = 0
        """Records that came since there are more than are kept."""

    # ------------------------------------------------------------------ what is asked of it

    def sites(self) -> list[str]:
        """Give the names of all sites: those that are expected, and those that were heard of."""
        names = {site for bus in self.buses.values() for site in bus.sites}
        names.update(name.site for name in self.agents)
        names.update(name.site for name in self.jobs)
        return sorted(names)

    def is_used(self, site: str) -> bool:
        """Tell whether a site is expected, or an agent of it was heard; of one that was removed only jobs are left."""
        return any(site in bus.sites for bus in self.buses.values()) or any(name.site == site for name in self.agents)

    def bus_of(self, site: str) -> str | None:
        """Give the bus of a site: the one that expects it, else the one on which it was heard."""
        for bus in self.buses.values():
            if site in bus.sites:
                return bus.name
        heard = (agent.bus for name, agent in self.agents.items() if name.site == site)
        known = (bus for name, bus in self._bus_of_job.items() if name.site == site)
        return next(heard, None) or next(known, None)

    def agents_of(self, site: str) -> list[AgentView]:
        """Give a site's agents, the leader first, then those heard last."""
        found = [agent for name, agent in self.agents.items() if name.site == site]
        return sorted(found, key=lambda agent: (not agent.leader, -agent.at))

    def leader_of(self, site: str) -> AgentView | None:
        """Give the agent that holds the site's lease, or held it last."""
        return next((agent for agent in self.agents_of(site) if agent.leader), None)

    def present_agents(self, site: str, now: float) -> list[AgentView]:
        """Give a site's leader, heard or not, and the others that are heard: a restarted agent has left its old id."""
        return [agent for agent in self.agents_of(site) if agent.leader or agent.is_heard(now)]

    def counts(self, site: str | None = None) -> Counter[str]:
        """Count jobs by state, of one site or of all."""
        return Counter(record.state.value for name, record in self.jobs.items() if site is None or name.site == site)

    def names(self) -> Iterator[Name]:
        """Give the names of everything that it holds."""
        yield from (BusName(name) for name in self.buses)
        yield from self.agents
        yield from self.jobs

    # ------------------------------------------------------------------ what changes it

    def set_bus(self, bus: BusView) -> list[Name]:
        """Take over how a bus is."""
        if self.buses.get(bus.name) == bus:
            return []
        self.buses[bus.name] = bus
        return [BusName(bus.name)]

    def take_heartbeat(self, bus: str, heartbeat: Heartbeat, at: float, *, lease: bool) -> list[Name]:
        """Take an agent's heartbeat; ``lease`` when it came on the key of the site's lease."""
        name = AgentName(heartbeat.site, heartbeat.agent_id)
        # Who gives the lease up leads no more, but was the last to: it tells how the site is.
        leader = lease and (heartbeat.leader or heartbeat.released)
        known = self.agents.get(name)
        if known is not None and at < known.at:
            return []  # the standby's key of an agent that leads by now
        changed: list[Name] = [name]
        if known is None:
            known = self.agents[name] = AgentView(bus, heartbeat, at, leader)
        known.bus, known.heartbeat, known.at, known.leader = bus, heartbeat, at, leader
        known.beats.append(
            Beat(at, heartbeat.interval, leader, heartbeat.vitals.bus_latency, heartbeat.scheduler.latency)
        )
        if lease:
            for other in self.agents.values():
                if other.name.site == name.site and other is not known and other.leader:
                    other.leader = False
                    changed.append(other.name)
        return changed + self._without_old_agents(name.site)

    def _without_old_agents(self, site: str) -> list[Name]:
        surplus = self.agents_of(site)[MAX_AGENTS:]
        for agent in surplus:
            del self.agents[agent.name]
        return [agent.name for agent in surplus]

    def take_record(self, bus: str, record: Record) -> list[Name]:
        """Take a job's record."""
        name = JobName(record.site, record.key, record.task)
        if self.jobs.get(name) == record:
            return []
        self.jobs[name] = record
        self._bus_of_job[name] = bus
        return [name, *self._without_old_jobs()]

    def _without_old_jobs(self) -> list[Name]:
        if len(self.jobs) <= MAX_JOBS:
            self._over = 0
            return []
        self._over += 1
        if (self._over - 1) % (MAX_JOBS // 50):  # so many that haven't ended aren't gone through for each record
            return []
        ended = sorted(
            (name for name, record in self.jobs.items() if record.state.is_final),
            key=lambda name: self.jobs[name].updated_at,
        )
        surplus = min(len(self.jobs) - MAX_JOBS + MAX_JOBS // 50, len(ended) - KEPT_ENDED)
        return self._drop(ended[: max(0, surplus)])

    def keep_jobs(self, bus: str, names: set[JobName]) -> list[Name]:
        """Drop the jobs of a bus that aren't there any more."""
        return self._drop([name for name, at in self._bus_of_job.items() if at == bus and name not in names])

    def keep_agents(self, bus: str, sites: set[str]) -> list[Name]:
        """Drop the agents of a bus whose sites were removed."""
        gone = [name for name, agent in self.agents.items() if agent.bus == bus and name.site not in sites]
        for name in gone:
            del self.agents[name]
        return list(gone)

    def forget_bus(self, bus: str) -> list[Name]:
        """Drop a bus and everything that was read there."""
        changed = self._drop([name for name, at in self._bus_of_job.items() if at == bus])
        gone = [name for name, agent in self.agents.items() if agent.bus == bus]
        for name in gone:
            del self.agents[name]
        if self.buses.pop(bus, None) is not None:
            changed.append(BusName(bus))
        return [*changed, *gone]

    def _drop(self, names: list[JobName]) -> list[Name]:
        for name in names:
            del self.jobs[name]
            del self._bus_of_job[name]
        return list(names)
