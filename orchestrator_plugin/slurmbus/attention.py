"""What a person should look at, worked out from the picture (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from slurmbus.history import ended_at
from slurmbus.picture import AgentView, BusView, JobName, Picture
from slurmbus_protocol.states import JobState

RECENT = 3600.0
"""Seconds during which a failed job asks for attention."""
AUTHORITY_SOON = 86400.0
"""Seconds before an agent's authority expires at which somebody should log in again."""
NAMED = 3
"""Failed jobs that are named; of more only the number is told."""


class Level(StrEnum):
    """How much it matters; the order is that in which they are shown."""

    BAD = "bad"
    WARNING = "warning"
    NOTE = "note"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to look at."""

    id: str
    """Stays the same while it is the same thing."""
    level: Level
    text: str
    hint: str = ""
    since: float | None = None
    """Since when; the text doesn't tell, so that it stays the same."""
    site: str = ""
    jobs: tuple[str, ...] = ()
    """Jobs that it is about: ``site/key/task``."""


def attention(picture: Picture, now: float) -> list[Item]:
    """Give what asks for attention, the worst first."""
    items = [item for bus in picture.buses.values() for item in _of_bus(bus)]
    for site in picture.sites():
        bus = picture.buses.get(picture.bus_of(site) or "")
        if bus is None or bus.reachable:  # of the others nothing is known at this moment
            items.extend(_of_site(picture, site, now))
    items.extend(_of_jobs(picture, now))
    order = list(Level)
    return sorted(items, key=lambda item: order.index(item.level))


def _of_bus(bus: BusView) -> Iterator[Item]:
    if not bus.reachable and bus.problem:
        yield Item(
            id=f"bus {bus.name}",
            level=Level.BAD,
            text=f"The bus isn't reachable: {bus.problem}",
            since=bus.since,
            hint=f"What is shown of {', '.join(bus.sites) or bus.name} is what was known before.",
        )
    elif bus.problem:
        yield Item(id=f"bus {bus.name}", level=Level.BAD, text=f"{bus.name}: {bus.problem}")


def _of_site(picture: Picture, site: str, now: float) -> Iterator[Item]:
    leader = picture.leader_of(site)
    if leader is None and not picture.is_used(site):
        return
    if leader is None:
        yield Item(
            id=f"site {site}",
            level=Level.NOTE,
            site=site,
            text=f"{site}: no agent has been heard of yet",
            hint="Start one on the login node: slurmbus-agent run --site " + site,
        )
        return
    yield from _of_condition(picture, leader, now)
    beat = leader.heartbeat
    if leader.condition(now) in {"alive", "late"}:
        if beat.scheduler.silent:
            yield Item(
                id=f"scheduler {site}",
                level=Level.BAD,
                site=site,
                text=f"{site}: the {beat.scheduler.kind} scheduler doesn't answer",
                since=beat.scheduler.since,
                hint=beat.scheduler.error or "Jobs go on; their states are learned when it answers.",
            )
        yield from _of_authority(site, beat.authority_expires_at, now)
        if beat.vitals.slowed:
            yield Item(id=f"slowed {site}", level=Level.WARNING, site=site, text=f"{site}: {beat.vitals.slowed}")
    for alarm in beat.alarms:
        yield Item(id=f"alarm {site} {alarm}", level=Level.WARNING, site=site, text=f"{site}: {alarm}")


def _of_condition(picture: Picture, leader: AgentView, now: float) -> Iterator[Item]:
    site, beat = leader.name.site, leader.heartbeat
    condition = leader.condition(now)
    unfinished = sum(not job.state.is_final for name, job in picture.jobs.items() if name.site == site)
    if condition == "silent":
        yield Item(
            id=f"site {site}",
            level=Level.BAD,
            site=site,
            text=f"{site}: no heartbeat from {beat.host}",
            since=leader.at,
            hint=f"{unfinished} unfinished jobs go on without it; start it again." if unfinished else "Start it again.",
        )
    elif condition == "late":
        text = f"{site}: the heartbeat from {beat.host} is late"
        yield Item(id=f"site {site}", level=Level.WARNING, site=site, text=text, since=leader.at)
    elif condition == "stopped":
        yield Item(
            id=f"site {site}",
            level=Level.WARNING if unfinished else Level.NOTE,
            site=site,
            text=f"{site}: the agent was stopped",
            since=leader.at,
            hint=f"{unfinished} unfinished jobs go on without it." if unfinished else "",
        )


def _of_authority(site: str, expires_at: float | None, now: float) -> Iterator[Item]:
    if expires_at is None or expires_at - now > AUTHORITY_SOON:
        return
    over = expires_at <= now
    yield Item(
        id=f"authority {site}",
        level=Level.BAD if over else Level.WARNING,
        site=site,
        text=f"{site}: the agent's authority has expired"
        if over
        else f"{site}: the agent's authority expires in a day",
        hint=f"It takes no new jobs until you log in again: slurmbus up {site}" if over else f"slurmbus up {site}",
        since=expires_at if over else None,
    )


def _of_jobs(picture: Picture, now: float) -> Iterator[Item]:
    failed: dict[str, list[JobName]] = defaultdict(list)
    for name, record in picture.jobs.items():
        ended = ended_at(record)
        if ended is not None and now - ended < RECENT and record.state not in {JobState.COMPLETED, JobState.CANCELLED}:
            failed[name.site].append(name)
    for site, names in failed.items():
        names.sort(key=lambda name: picture.jobs[name].updated_at, reverse=True)
        listed = ", ".join(f"{picture.jobs[name].name} ({picture.jobs[name].state})" for name in names[:NAMED])
        many = f"{len(names)} jobs" if len(names) > 1 else "1 job"
        yield Item(
            id=f"failed {site}",
            level=Level.WARNING,
            site=site,
            text=f"{site}: {many} failed in the last hour",
            hint=listed + (", …" if len(names) > NAMED else ""),
            jobs=tuple("/".join(map(str, name)) for name in names[:NAMED]),
        )
