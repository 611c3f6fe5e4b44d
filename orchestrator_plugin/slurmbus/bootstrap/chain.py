"""Every link of a site's chain, from this machine to its compute nodes: tested one after the other, and explained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from slurmbus import authority
from slurmbus.bootstrap import checking, journal
from slurmbus.bootstrap.bus_process import bus_of
from slurmbus.bootstrap.entering import master_of
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.journal import Journal
from slurmbus.bootstrap.session import Remote
from slurmbus.bootstrap.supervising import KINDS, Supervised
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.events import AgentStatus
from slurmbus.home import EMBEDDED, Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import BudgetSpent, SlurmbusError
from slurmbus_protocol.messages import AskPartitions, Heartbeat, Partitions

_DAY = 86400.0
_SOON = 2 * _DAY
"""An authority that ends within this is worth a word."""
SCHEDULER_PATIENCE = 60.0
"""Seconds; the agent gives a controller that is silent up sooner."""


class Grade(Enum):
    """How good a finding is, and how it is shown."""

    FINE = "ok"
    NOTE = "--"
    BROKEN = "NO"
    """Jobs can't come through because of it."""


@dataclass(frozen=True)
class Finding:
    """One link of the chain."""

    what: str
    words: str
    grade: Grade = Grade.FINE
    hint: str = ""


class Chain:
    """Tests the chain of a site.

    Args:
        home: whose site.
        site: its name.
    """

    def __init__(self, home: Home, site: str) -> None:
        self.home = home
        self.site = site
        self.profile = home.site(site)
        self.journal: Journal | None = journal.read(home, site)
        self._client = SiteClient(Connection.get(ConnectionSettings.of_site(home, site)), site)
        self.agent: AgentStatus | None = None
        """The one that serves, as far as the bus knows."""
        self._told: Heartbeat | None = None
        """What it answered."""

    # ------------------------------------------------------------------ from here

    def from_here(self, *, ask_slurm: bool = True) -> Iterator[Finding]:
        """Test what can be tested without a login; of Slurm, unless it is to be asked, what the agent knows."""
        yield self.settings()
        yield self.connection()
        bus = self.bus()
        yield bus
        if bus.grade is Grade.BROKEN:
            yield self.authority()
            return
        yield self.agents()
        if self.agent is not None and self.agent.alive:
            yield self.lease()
            yield self.answers()
            yield self.scheduler() if ask_slurm else self.scheduler_as_known()
            yield from self.alarms()
        yield self.authority()

    def settings(self) -> Finding:
        """The profile, and what ``up`` did."""
        login = self.profile.login
        if login is None:
            return Finding(
                "settings", f"nobody has said how one gets into {self.site}", Grade.NOTE, self._up("--host …")
            )
        if self.journal is None:
            return Finding("settings", f"{login.destination}; 'up' hasn't been run", Grade.NOTE, self._up())
        done = self.journal
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(done.at))
        return Finding("settings", f"{login.destination}; up since {since}, {done.version} in {done.install_folder}")

    def connection(self) -> Finding:
        """The connection of the login, which only a tunnel needs."""
        if self.journal is None or self.profile.login is None:
            return Finding("connection", "none", Grade.NOTE)
        alive = master_of(self.home, self.site).alive
        if self.journal.way != "tunnel":
            return Finding("connection", f"none is needed: the agent reaches the bus by itself ({self.journal.way})")
        if alive:
            return Finding("connection", f"the tunnel stands: {', '.join(self.journal.servers)}")
        return Finding(
            "connection",
            "the tunnel is gone (the machine slept, or the network changed); jobs go on",
            Grade.BROKEN,
            f"log in once: slurmbus up {self.site}",
        )

    def bus(self) -> Finding:
        """The bus, as this machine reaches it."""
        try:
            where = self.home.bus_url() if self.profile.bus == EMBEDDED else ", ".join(self.profile.bus)
            self._client.heartbeats()
        except SlurmbusError as error:
            hint = self._up() if self.profile.bus == EMBEDDED else error.hint
            return Finding("bus", error.message, Grade.BROKEN, hint)
        process = bus_of(self.home).process if self.profile.bus == EMBEDDED else None
        return Finding("bus", f"{where} answers{f'; process {process} of this machine' if process else ''}")

    def authority(self) -> Finding:
        """Until when new jobs are taken: the agent decides, whose policies may give less than the last login did."""
        grant = authority.current(self.home, self.site)
        if self._told is not None and self._told.authority_expires_at is not None:
            expires_at, says = self._told.authority_expires_at, "the agent"
        elif grant is not None:
            expires_at, says = grant.expires_at, grant.issuer
        else:
            return Finding("authority", "no login has brought one", Grade.NOTE, self._up())
        left = expires_at - time.time()
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(expires_at))
        if left <= 0:
            words = "the agent takes no more requests; running jobs go on"
            words = f"it ended {until}: {words}" if expires_at else f"there is none: {words}"
            return Finding("authority", words, Grade.BROKEN, f"a login renews it: slurmbus up {self.site}")
        if left < _SOON:
            return Finding("authority", f"it ends {until}", Grade.NOTE, f"a login renews it: slurmbus up {self.site}")
        return Finding("authority", f"until {until}, says {says}")

    def agents(self) -> Finding:
        """The agent's heartbeat."""
        found = self._client.heartbeats()
        if not found:
            return Finding("agent", "none has ever been heard of on this bus", Grade.BROKEN, self._look_there())
        self.agent = found[0]
        beat, age = found[0].heartbeat, found[0].age
        others = sum(one.alive for one in found[1:])
        standby = f"; {others} more stand by" if others else ""
        if beat.released:
            return Finding("agent", f"it was stopped on {beat.host}", Grade.BROKEN, self._up())
        if not found[0].alive:
            return Finding("agent", f"silent for {age:.0f} s; it was on {beat.host}", Grade.BROKEN, self._look_there())
        return Finding("agent", f"{beat.version} on {beat.host}, process {beat.pid}; beat {age:.1f} s ago{standby}")

    def lease(self) -> Finding:
        """Which agent serves."""
        assert self.agent is not None  # noqa: S101 - see from_here
        beat = self.agent.heartbeat
        if not beat.leader:
            return Finding("lease", f"nobody holds it; {beat.host} stands by", Grade.NOTE, "it is taken within seconds")
        return Finding("lease", f"held by {beat.agent_id}, epoch {beat.epoch}")

    def answers(self) -> Finding:
        """A question over the bus and back."""
        try:
            self._told = checking.await_agent(self._client, 0.0)
            seconds = checking.round_trip(self._client)
        except SlurmbusError as error:
            return Finding("ping", error.message, Grade.BROKEN, error.hint or self._look_there())
        return Finding("ping", f"{seconds * 1000:.0f} ms there and back")

    def scheduler(self) -> Finding:
        """Slurm, which the agent asks on this occasion: one without jobs has no reason to, and notices nothing."""
        assert self.agent is not None  # noqa: S101
        kind = self.agent.heartbeat.scheduler.kind
        try:
            found = self._client.ask("partitions", AskPartitions(), Partitions, SCHEDULER_PATIENCE)
        except BudgetSpent as error:
            return Finding("scheduler", f"{kind} wasn't asked: {error.message}", Grade.NOTE)
        except SlurmbusError as error:
            hint = "is Slurm down there? Running jobs go on"
            return Finding("scheduler", f"{kind} doesn't answer: {error.message}", Grade.BROKEN, hint)
        names = ", ".join(partition.name for partition in found.partitions)
        return Finding("scheduler", f"{kind} answers{f'; partitions: {names}' if names else ''}")

    def scheduler_as_known(self) -> Finding:
        """Slurm, as the agent's last heartbeat tells: nothing is asked."""
        assert self.agent is not None  # noqa: S101 - see from_here
        health = self.agent.heartbeat.scheduler
        if health.silent:
            return Finding("scheduler", f"{health.kind} doesn't answer: {health.error}", Grade.BROKEN)
        return Finding("scheduler", health.kind)

    def alarms(self) -> Iterator[Finding]:
        """What the agent itself complains about."""
        assert self.agent is not None  # noqa: S101
        for alarm in self.agent.heartbeat.alarms:
            yield Finding("alarm", alarm, Grade.NOTE)

    def trial(self) -> Finding:
        """A job on a compute node: spool and link."""
        found = checking.run_trial(self._client, {}, lambda _words: None)
        if found.waiting:
            return Finding("trial job", checking.trial_words(found), Grade.NOTE)
        if not found.works:
            return Finding("trial job", checking.trial_words(found), Grade.BROKEN, f"slurmbus logs {found.key}")
        grade = Grade.FINE if found.link else Grade.NOTE
        hint = "" if found.link else "output comes a little later; name an address that nodes reach: --link-host"
        return Finding("trial job", checking.trial_words(found), grade, hint)

    # ------------------------------------------------------------------ from there

    def from_there(self, remote: Remote) -> Iterator[Finding]:
        """Test what only the login node can tell: processes, programs, Slurm, spool, and the bus from there."""
        if self.journal is None:
            return
        layout = Layout(self.journal.install_folder, self.site)
        if not remote.call("look", path=layout.command)["kind"]:
            yield Finding("installed", f"there is no {layout.command}", Grade.BROKEN, self._up())
            return
        supervised = KINDS[self.journal.supervisor](layout, self.journal.config, self.journal.environment)
        yield self._process(remote, supervised)
        done = supervised.call(remote, "doctor")
        yield from read_report(done.out)
        if done.code not in {0, 1}:
            yield Finding("there", done.words, Grade.BROKEN)

    def _process(self, remote: Remote, supervised: Supervised) -> Finding:
        done = supervised.call(remote, "status")
        words = "; ".join(done.out.strip().splitlines()) or done.words
        if done.code == 0:
            return Finding("process", words)
        return Finding(
            "process", words, Grade.BROKEN, f"{self._up()}; 'slurmbus logs {self.site}' shows its last words"
        )

    def _up(self, *more: str) -> str:
        return " ".join(("slurmbus up", self.site, *more))

    def _look_there(self) -> str:
        return f"look on the login node: slurmbus doctor {self.site} --login"


def read_report(text: str) -> Iterator[Finding]:
    """Read what ``slurmbus-agent doctor`` prints (pure)."""
    grades = {grade.value: grade for grade in Grade}
    found: Finding | None = None
    for line in text.splitlines():
        grade = grades.get(line[:2])
        if grade is not None and line[2:4] == "  ":
            if found is not None:
                yield found
            what, _, words = line[4:].partition("  ") if "  " in line[4:] else line[4:].partition(" ")
            found = Finding(f"there: {what.strip()}", words.strip(), grade)
        elif found is not None and "→" in line:
            found = Finding(found.what, found.words, found.grade, line.partition("→")[2].strip())
    if found is not None:
        yield found
