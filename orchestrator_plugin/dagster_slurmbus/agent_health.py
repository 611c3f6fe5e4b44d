"""How a site's agent is: the judgement of its last heartbeat, and its figures as metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dagster_slurmbus.outcomes import Metadata, prefixed
from slurmbus.client import SiteClient
from slurmbus.events import AgentStatus
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import Heartbeat

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """What there is to say of a site's agent at this moment."""

    passed: bool
    words: str
    kind: str
    """What it was judged by; something has happened when this changes."""
    severity: dg.AssetCheckSeverity = ERROR
    metadata: Metadata | None = None


def look(connect: Callable[[], SiteClient]) -> AgentHealth:
    """Ask the bus for the heartbeats of a site, and judge them."""
    try:
        client = connect()
        return judge(client.site, client.heartbeats())
    except SlurmbusError as error:
        return AgentHealth(
            passed=False, words=f"the agent can't be looked for: {error}", kind=f"unreachable {error.code}"
        )


def judge(site: str, agents: Sequence[AgentStatus]) -> AgentHealth:
    """Judge a site by its agents' last heartbeats, of which the leader's comes first."""
    if not agents:
        words = f"no agent of site {site} has ever been heard of: start 'slurmbus-agent run --site {site}' there"
        return AgentHealth(passed=False, words=words, kind="never heard of")
    leader = agents[0]
    beat = leader.heartbeat
    where = f"agent {beat.agent_id} on {beat.host}"
    if not leader.alive:
        doing = "was stopped" if beat.released else "is silent, its last heartbeat came"
        words = f"the {where} {doing} {leader.age:.0f} s ago"
        kind = f"{'stopped' if beat.released else 'silent'} {beat.agent_id}"
        return AgentHealth(passed=False, words=words, kind=kind, metadata=_silent(site, leader))
    metadata = figures(site, agents)
    concerns = list(_concerns(beat))
    if concerns:
        kind = f"concerns {beat.agent_id} {concerns}"
        words = f"the {where} serves, but {'; '.join(concerns)}"
        return AgentHealth(passed=False, words=words, kind=kind, severity=WARN, metadata=metadata)
    jobs = sum(beat.vitals.jobs.values())
    words = f"the {where} serves, with {jobs} unfinished job{'' if jobs == 1 else 's'}"
    return AgentHealth(passed=True, words=words, kind=f"alive {beat.agent_id}", metadata=metadata)


def _concerns(beat: Heartbeat) -> list[str]:
    """Name what a person should look at."""
    found = list(beat.alarms)
    if beat.scheduler.silent:
        why = f": {beat.scheduler.error}" if beat.scheduler.error else ""
        found.append(f"its scheduler ({beat.scheduler.kind}) doesn't answer{why}")
    if beat.vitals.slowed:
        found.append(f"it has slowed down: {beat.vitals.slowed}")
    return found


def figures(site: str, agents: Sequence[AgentStatus]) -> Metadata:
    """Give an agent's figures; numbers are numbers, so that Dagster plots them over time."""
    leader, living = agents[0], [agent for agent in agents if agent.alive]
    beat = leader.heartbeat
    vitals, scheduler = beat.vitals, beat.scheduler
    number: dict[str, float | None] = {
        "heartbeat_age_seconds": leader.age,
        "standbys": sum(not agent.heartbeat.leader for agent in living),
        "uptime_seconds": beat.sent_at - beat.started_at,
        "cpu_seconds": vitals.cpu_seconds,
        "memory_bytes": vitals.rss,
        "scheduler_memory_bytes": vitals.scheduler_rss,
        "open_files": vitals.open_files,
        "jobs": sum(vitals.jobs.values()),
        "backlog_bytes": vitals.backlog,
        "bad_messages": vitals.bad_messages,
        "bus_round_trip_seconds": vitals.bus_latency,
        "scheduler_latency_seconds": scheduler.latency,
        "scheduler_calls": sum(scheduler.calls.values()),
        "scheduler_restarts": scheduler.restarts,
        "link_connections": vitals.link_connections,
        "handovers": vitals.handovers,
        **{f"jobs/{state}": count for state, count in vitals.jobs.items()},
        **{f"budget/{budget.name}": budget.used / budget.limit for budget in vitals.budgets if budget.limit},
    }
    text = {
        "site": site,
        "agent": beat.agent_id,
        "host": beat.host,
        "version": beat.version,
        "scheduler": f"{scheduler.kind} {scheduler.version}".strip(),
        "alarms": "; ".join(beat.alarms),
    }
    return prefixed(
        {
            **{name: _number(value) for name, value in number.items() if value is not None},
            **{name: dg.MetadataValue.text(value) for name, value in text.items() if value},
        }
    )


def _silent(site: str, agent: AgentStatus) -> Metadata:
    """Give what can still be said of one that doesn't beat any more: its figures are old."""
    return prefixed(
        {
            "site": dg.MetadataValue.text(site),
            "host": dg.MetadataValue.text(agent.heartbeat.host),
            "heartbeat_age_seconds": dg.MetadataValue.float(agent.age),
        }
    )


def _number(value: float) -> dg.MetadataValue[Any]:
    return dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(value)
