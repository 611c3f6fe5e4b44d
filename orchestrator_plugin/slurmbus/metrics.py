"""What a board knows, as metrics for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from slurmbus.board import Board
from slurmbus.job_tally import JobTally
from slurmbus.picture import AgentView, Picture
from slurmbus_protocol.messages import Heartbeat

Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Further label values, and the value; None is what nobody knows."""
ANSWER_WITHIN = 5.0
"""Seconds within which a scrape gets its answer."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of every agent that is heard."""

    name: str
    """Counters end in ``_total``."""
    help: str
    samples: Callable[[Heartbeat], Samples]
    labels: tuple[str, ...] = ()


def _one(value: Callable[[Heartbeat], float | None]) -> Callable[[Heartbeat], Samples]:
    return lambda beat: [((), value(beat))]


def _each(values: Callable[[Heartbeat], dict[str, int]]) -> Callable[[Heartbeat], Samples]:
    return lambda beat: [((name,), value) for name, value in sorted(values(beat).items())]


AGENT_FIGURES = (
    Figure("agent_start_time_seconds", "When the agent started, in seconds since 1970.", _one(lambda b: b.started_at)),
    Figure("agent_heartbeat_interval_seconds", "Seconds until the next heartbeat is due.", _one(lambda b: b.interval)),
    Figure("agent_cpu_seconds_total", "CPU time of the agent and its processes.", _one(lambda b: b.vitals.cpu_seconds)),
    Figure("agent_resident_memory_bytes", "Resident memory of the agent's process.", _one(lambda b: b.vitals.rss)),
    Figure("agent_open_files", "Open files of the agent's process.", _one(lambda b: b.vitals.open_files)),
    Figure("agent_backlog_bytes", "Bytes that wait to be relayed.", _one(lambda b: b.vitals.backlog)),
    Figure("agent_bad_messages_total", "Requests that were refused.", _one(lambda b: b.vitals.bad_messages)),
    Figure("agent_bus_round_trip_seconds", "From the agent to the bus and back.", _one(lambda b: b.vitals.bus_latency)),
    Figure("agent_alarms", "Alarms that are on.", _one(lambda b: len(b.alarms))),
    Figure(
        "agent_slowed",
        "1 while the agent does less than it could, to spare its host.",
        _one(lambda b: bool(b.vitals.slowed)),
    ),
    Figure(
        "agent_handovers_total", "Times the agent gave its work to a fresh process.", _one(lambda b: b.vitals.handovers)
    ),
    Figure("agent_link_connections", "Runners that are connected.", _one(lambda b: b.vitals.link_connections)),
    Figure("agent_stat_calls_total", "Looks at files of the spool.", _one(lambda b: b.vitals.stat_calls)),
    Figure("agent_bus_received_bytes_total", "Bytes from the bus.", _one(lambda b: b.vitals.bus_bytes_in)),
    Figure("agent_bus_sent_bytes_total", "Bytes to the bus.", _one(lambda b: b.vitals.bus_bytes_out)),
    Figure("agent_link_received_bytes_total", "Bytes from runners.", _one(lambda b: b.vitals.link_bytes_in)),
    Figure("agent_link_sent_bytes_total", "Bytes to runners.", _one(lambda b: b.vitals.link_bytes_out)),
    Figure("agent_unfinished_jobs", "Unfinished jobs that it follows.", _each(lambda b: b.vitals.jobs), ("state",)),
    Figure(
        "agent_budget_used_ratio",
        "Used part of a budget: 1 is all of it.",
        lambda beat: [((one.name,), one.used / one.limit) for one in beat.vitals.budgets if one.limit],
        ("budget",),
    ),
    Figure(
        "scheduler_up",
        "1 while what the agent submits to answers.",
        _one(lambda b: b.scheduler.responding if b.scheduler.asked else None),
    ),
    Figure("scheduler_latency_seconds", "How long its last answer took.", _one(lambda b: b.scheduler.latency)),
    Figure("scheduler_calls_total", "Calls to it, by kind.", _each(lambda b: b.scheduler.calls), ("call",)),
    Figure(
        "scheduler_records_returned_total",
        "Records that it gave in answer, by kind of call.",
        _each(lambda b: b.vitals.records_returned),
        ("call",),
    ),
    Figure(
        "scheduler_restarts_total", "Restarts of the process that talks to it.", _one(lambda b: b.scheduler.restarts)
    ),
    Figure(
        "scheduler_resident_memory_bytes",
        "Resident memory of the process that talks to it.",
        _one(lambda b: b.vitals.scheduler_rss),
    ),
)
"""The figures of a heartbeat; all have the labels site and agent first."""


class BoardCollector(Collector):
    """Turns a picture and a tally into metrics; to be called on the board's own loop.

    Args:
        picture: what is known now.
        tally: what was counted.
    """

    def __init__(self, picture: Picture, tally: JobTally) -> None:
        self._picture = picture
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        """Give every metric."""
        now = time.time()
        yield from self._buses()
        yield from self._sites(now)
        yield from self._agents(now)
        yield from self._tally.collect()

    def _buses(self) -> Iterator[Metric]:
        up = _gauge("bus_up", "1 while the bus answers.", "bus")
        trip = _gauge("bus_round_trip_seconds", "From here to the bus and back.", "bus")
        for bus in self._picture.buses.values():
            up.add_metric([bus.name], bus.reachable)
            if bus.reachable and bus.round_trip is not None:
                trip.add_metric([bus.name], bus.round_trip)
        yield from (up, trip)

    def _sites(self, now: float) -> Iterator[Metric]:
        up = _gauge("site_up", "1 while an agent serves the site.", "site")
        jobs = _gauge(
            "jobs", "Jobs that the bus knows, by state; finished ones until they are forgotten.", "site", "state"
        )
        for site in self._picture.sites():
            leader = self._picture.leader_of(site)
            if self._picture.is_used(site):
                up.add_metric([site], leader is not None and leader.is_heard(now))
            for state, count in sorted(self._picture.counts(site).items()):
                jobs.add_metric([site, state], count)
        yield from (up, jobs)

    def _agents(self, now: float) -> Iterator[Metric]:
        agents = [agent for site in self._picture.sites() for agent in self._picture.present_agents(site, now)]
        yield from _presence(agents, now)
        heard = [agent for agent in agents if agent.is_heard(now)]
        for figure in AGENT_FIGURES:
            yield _family(figure, heard)


def _presence(agents: Iterable[AgentView], now: float) -> Iterator[Metric]:
    """Give what can be said of an agent also when it is silent."""
    up = _gauge("agent_up", "1 while its heartbeats come.", "site", "agent")
    leader = _gauge(
        "agent_leader", "1 for the agent that holds the site's lease, 0 for one that stands by.", "site", "agent"
    )
    age = _gauge("agent_heartbeat_age_seconds", "Seconds since its last heartbeat.", "site", "agent")
    words = ("host", "user", "version", "scheduler", "scheduler_version")
    info = _gauge("agent_info", "Always 1; what it is.", "site", "agent", *words)
    for agent in agents:
        beat = agent.heartbeat
        who = [beat.site, beat.agent_id]
        up.add_metric(who, agent.is_heard(now))
        leader.add_metric(who, agent.leader and not beat.released)
        age.add_metric(who, agent.age(now))
        info.add_metric([*who, beat.host, beat.user, beat.version, beat.scheduler.kind, beat.scheduler.version], 1)
    yield from (up, leader, age, info)


def _family(figure: Figure, agents: Iterable[AgentView]) -> Metric:
    kind = CounterMetricFamily if figure.name.endswith("_total") else GaugeMetricFamily
    family = kind(f"slurmbus_{figure.name}", figure.help, labels=["site", "agent", *figure.labels])
    for agent in agents:
        who = (agent.heartbeat.site, agent.heartbeat.agent_id)
        for labels, value in figure.samples(agent.heartbeat):
            if value is not None:
                family.add_metric([*who, *labels], value)
    return family


def _gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"slurmbus_{name}", words, labels=labels)


class Metrics:
    """A board's metrics, for a server that runs on the board's loop, or elsewhere.

    Args:
        board: what is shown.
    """

    def __init__(self, board: Board) -> None:
        self.tally = JobTally(board)
        self.collector = BoardCollector(board.picture, self.tally)

    async def run(self) -> None:
        """Count what ends, for ever."""
        await self.tally.run()

    def page(self, accept: str = "") -> tuple[str, bytes]:
        """Give content type and content, in the format that a scraper accepts; on the board's loop."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self.collector)


class OnLoop(Collector):
    """Collects on the board's loop, for a server in a thread of its own: pictures change while they are read.

    Args:
        metrics: what is collected.
        loop: the board's.
    """

    def __init__(self, metrics: Metrics, loop: asyncio.AbstractEventLoop) -> None:
        self._metrics = metrics
        self._loop = loop

    def collect(self) -> list[Metric]:
        """Give every metric; TimeoutError when the loop is busy for too long."""
        return asyncio.run_coroutine_threadsafe(self._collect(), self._loop).result(ANSWER_WITHIN)

    async def _collect(self) -> list[Metric]:
        return list(self._metrics.collector.collect())
