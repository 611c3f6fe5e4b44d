"""``slurmbus up``: from an account at a site to an agent that serves it, with one login.

Every step says what it found and what it changed, does nothing when nothing has to be done, and leaves nothing half
done when it fails or is interrupted: what is new becomes visible by one rename, and what isn't finished is removed by
the helper on the site when the session ends.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from slurmbus import authority
from slurmbus.bootstrap import account, bringing, checking, compiling, installing, journal, plan, probe, pythons, ways
from slurmbus.bootstrap import wheels as agent_wheels
from slurmbus.bootstrap.background import Background
from slurmbus.bootstrap.bringing import Brought, Toml
from slurmbus.bootstrap.bus_process import bus_of
from slurmbus.bootstrap.entering import enter, master_of
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.journal import Journal
from slurmbus.bootstrap.keeper import keeper_of
from slurmbus.bootstrap.plan import Plan
from slurmbus.bootstrap.probe import Probe, Python
from slurmbus.bootstrap.session import Remote
from slurmbus.bootstrap.supervising import KINDS, Supervised
from slurmbus.bootstrap.telling import Teller
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.errors import LocalNotStarted, SiteUnfit
from slurmbus.home import EMBEDDED, Home, SiteProfile
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import BusUnreachable, EnvironmentUnusable, SiteUnreachable
from slurmbus_protocol.messages import Heartbeat

_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
STANDING_PATIENCE = 10.0
"""Seconds in which an agent whose heart beats answers."""


@dataclass(frozen=True)
class Wishes:
    """What this one run shall do, besides the site's settings."""

    upgrade: bool = False
    """Replace an agent of another version."""
    login: bool = False
    """Log in even if nothing has to be done."""
    trial: bool = True
    """Run the trial job."""
    batch: bool = False
    """Never ask anybody."""


@dataclass
class Outcome:
    """What was done."""

    changes: list[str] = field(default_factory=list)
    heartbeat: Heartbeat | None = None
    trial: checking.Trial | None = None
    account: account.Account | None = None
    version: str = ""
    way: str = ""
    supervisor: str = ""
    logged_in: bool = True
    older: str = ""
    """The version that runs, when it isn't the one that would be installed now."""


class Up:
    """One run.

    Args:
        home: whose site.
        site: its name; its profile has a ``login``.
        wishes: what this run shall do.
        teller: is told.
    """

    def __init__(self, home: Home, site: str, wishes: Wishes, teller: Teller) -> None:
        self.home = home
        self.site = site
        self._wishes = wishes
        self._tell = teller
        self._outcome = Outcome()
        self.master = master_of(home, site)
        self._login = self.master.login
        self._client = SiteClient(Connection.get(ConnectionSettings.of_site(home, site)), site)

    @property
    def _profile(self) -> SiteProfile:
        return self.home.site(self.site)

    def run(self) -> Outcome:
        """Do what has to be done.

        Raises:
            SlurmbusError: something can't be done; its hint says what a person can do.
        """
        self._ensure_bus()
        before = journal.read(self.home, self.site)
        if before is not None and self._stands(before):
            return self._outcome
        self.master = enter(self.home, self.site, self._tell, batch=self._wishes.batch)
        try:
            with Remote(self.master, self._login.agent_python) as remote:
                self._set_up(remote, before)
        except BaseException:
            stays = before is not None and before.way == "tunnel"
            if not stays or (self.master.opened and self._outcome.way != "tunnel"):
                self.master.close()
            raise
        if self._outcome.way != "tunnel":
            self.master.close()
        return self._outcome

    # ------------------------------------------------------------------ before the login

    def _ensure_bus(self) -> None:
        if checking.is_reachable(self._client):
            return
        if self._profile.bus != EMBEDDED:
            raise BusUnreachable(
                f"the bus {', '.join(self._profile.bus)} can't be reached from here",
                hint="does it run? does this machine reach it?",
            )
        running = bus_of(self.home)
        process = running.process
        if process is None:
            self._start_bus(running)
        elif not checking.becomes_reachable(self._client):
            raise BusUnreachable(
                f"the bus of this machine (process {process}) doesn't answer", hint=f"its log is {running.log}"
            )

    def _start_bus(self, background: Background) -> None:
        self.home.make()
        try:
            process = background.start()
        except LocalNotStarted:
            if checking.becomes_reachable(self._client):  # somebody else runs it, and was busy
                return
            raise
        self._outcome.changes.append("the bus of this machine was started")
        url = self.home.bus_url()
        self._tell.step("bus", f"{url}, started in the background (process {process})")
        if not checking.becomes_reachable(self._client):
            raise BusUnreachable(f"the bus at {url} was started and can't be reached")

    def _stands(self, before: Journal) -> bool:
        """Tell whether everything is as it shall be, so that nobody has to log in."""
        if self._wishes.login or before.login != self._login:
            return False
        agents = [status for status in self._client.heartbeats() if status.alive]
        if not agents or (before.way == "tunnel" and not self.master.alive):
            return False
        if before.source != agent_wheels.source_hash() and self._wishes.upgrade:
            return False
        if before.brought != authority.hashes(authority.files(self.home, self.site)):
            return False
        try:
            heartbeat = checking.await_agent(self._client, STANDING_PATIENCE)
        except SiteUnreachable:
            return False
        if not authority.is_fresh(self.home, self.site, heartbeat.authority_expires_at):
            return False
        self._outcome.heartbeat = heartbeat
        self._outcome.version, self._outcome.way = before.version, before.way
        self._outcome.supervisor = before.supervisor
        self._outcome.logged_in = False
        if before.source != agent_wheels.source_hash():
            self._outcome.older = before.version
        self._say_agent(heartbeat)
        return True

    # ------------------------------------------------------------------ on the site

    def _set_up(self, remote: Remote, before: Journal | None) -> None:
        found = self._look(remote)
        chosen = plan.make(found, self._login, self._profile.scheduler)
        self._say_plan(chosen)
        layout = Layout(chosen.install_folder, self.site)
        chosen = self._with_python(remote, chosen, found)
        version = self._install(remote, layout, chosen, found)
        way = self._find_way(remote, found)
        supervisor = plan.supervisor_for_way(chosen.supervisor, way.way.what, self._login.supervisor).what
        brought = self._exchange_keys(remote, self._beside_a_full_home(layout, chosen, found), found, before)
        spool = _spool({"spool": self.home.site(self.site).spool}, self.site, found.home)
        supervised = KINDS[supervisor](layout, brought.config, found.environment, spool)
        self._start(remote, supervised, version, found, before, anew=brought.other_bundle)
        if found.slurm and found.slurm.version:
            self._outcome.account = account.look(remote, found.user, found.environment)
        self._check(supervised.patience)
        installing.tidy(remote, layout)
        self._outcome.supervisor = supervisor
        source = agent_wheels.source_hash()
        if self._outcome.older:  # what is installed there is still to be replaced
            source = before.source if before is not None else ""
        journal.write(
            self.home,
            Journal(
                site=self.site,
                host=found.host,
                install_folder=layout.folder,
                version=self._outcome.version,
                source=source,
                config=brought.config,
                supervisor=supervisor,
                way=way.way.what,
                servers=way.servers,
                login=self._login,
                brought=brought.hashes,
                environment=found.environment,
                at=time.time(),
            ),
        )
        self._keep_tunnel(way)

    def _look(self, remote: Remote) -> Probe:
        self._tell.progress("looking around", 0, 0)
        folders = [self._login.install_folder] if self._login.install_folder else []
        index = next((os.environ[name] for name in _INDEXES if os.environ.get(name)), "")
        found = probe.look(remote, index=index, python=self._login.agent_python, folders=folders)
        slurm = found.slurm.version if found.slurm and found.slurm.version else "no Slurm"
        words = f"{found.host}: {found.system} {found.machine}, {found.libc[0]} {found.libc[1]}; Slurm {slurm}"
        if found.crowd:
            words += f"; {found.crowd} other people are there"
        if index:
            words += "; reaches your package index" if found.index else "; doesn't reach your package index"
        self._tell.step("site", words.replace("Slurm no Slurm", "no Slurm"))
        return found

    def _say_plan(self, chosen: Plan) -> None:
        self._tell.step("scheduler", f"{chosen.scheduler.what}: {chosen.scheduler.why}")
        place = chosen.folder
        free = f"{place.free / 2**30:.1f} GiB free, {place.system or 'unknown file system'}"
        self._tell.step("folder", f"{chosen.install_folder} ({free})")
        for note in chosen.notes:
            self._tell.note(note)

    def _with_python(self, remote: Remote, chosen: Plan, found: Probe) -> Plan:
        python = chosen.python
        if python is None:
            archive = pythons.archive_for(found, self._login.python_archive, self._tell.progress)
            python = pythons.bring(remote, chosen.install_folder, archive, self._tell.progress)
        self._tell.step("Python", f"{python.version}, {python.path} ({_source(python)})")
        return msgspec.structs.replace(chosen, python=python)

    def _install(self, remote: Remote, layout: Layout, chosen: Plan, found: Probe) -> str:
        assert chosen.python is not None  # noqa: S101 - it was brought
        there = msgspec.structs.replace(found.platform, pythons=(chosen.python.for_wheels,))
        wheels = agent_wheels.collect(there, chosen.python.path, self._tell.progress)
        compiled = chosen.pyslurm.what == "build" and found.slurm is not None
        extra = f"pyslurm of {found.slurm.version}" if compiled and found.slurm else ""
        name = installing.version_name(wheels, chosen.python, extra)
        old = installing.pointed(remote, layout)
        if old and old != name and installing.is_complete(remote, layout, old) and not self._wishes.upgrade:
            self._outcome.older = self._outcome.version = old
            self._tell.step("agent", f"{old} is installed; {name} would replace it: --upgrade")
            return old
        if installing.is_complete(remote, layout, name):
            self._tell.step("agent", f"{name} is installed")
        else:
            more = self._compiling(remote, chosen.python, found) if compiled else _nothing
            installing.install(remote, layout, name, wheels, chosen, self._tell.progress, more)
            self._outcome.changes.append(f"the agent {name} was installed")
            self._tell.step("agent", f"{name} installed in {layout.version(name)}")
        if installing.point(remote, layout, name, installing.command_script(layout, found)):
            self._outcome.changes.append("the agent's command was set up")
        self._outcome.version = name
        return name

    def _compiling(self, remote: Remote, python: Python, found: Probe) -> Callable[[str], None]:
        """Give what compiles pyslurm into a version; where that fails, Slurm's commands do, and a person is told."""

        def compile_it(target: str) -> None:
            assert found.slurm is not None  # noqa: S101 - it was chosen by that
            try:
                ingredients = compiling.gather(found.platform, python, found.slurm, self._tell.progress)
                version = compiling.compile_into(remote, target, python, found.slurm, ingredients, self._tell.progress)
            except (SiteUnfit, EnvironmentUnusable) as error:
                self._tell.note(f"no pyslurm: {error.message}; the agent uses Slurm's commands")
            else:
                self._tell.step("pyslurm", f"{version}, compiled against Slurm {found.slurm.version}")

        return compile_it

    def _find_way(self, remote: Remote, found: Probe) -> ways.Route:
        route = ways.find(remote, self.home, self._profile, found, self._login.way, here=_is_here(found))
        if route.way.what == "tunnel":
            scheme = self._scheme()
            server, new = ways.open_tunnel(self.master, remote, self.site, found, route.target, scheme, self._tell.note)
            if new:
                self._outcome.changes.append("the tunnel was opened")
            route = msgspec.structs.replace(route, servers=(server,))
        if self._profile.agent_servers != route.servers:
            self.home.change_site(self.site, agent_servers=route.servers)
        self._tell.step("way to bus", f"{route.way.what}, {', '.join(route.servers)}: {route.way.why}")
        self._outcome.way = route.way.what
        return route

    def _keep_tunnel(self, way: ways.Route) -> None:
        keeper = keeper_of(self.home, self.site)
        wanted = way.way.what == "tunnel" and self._login.tunnel_relogin
        if wanted and keeper.process is None:
            self._tell.step("tunnel", f"process {keeper.start()} logs in again when it dies")
        elif not wanted:
            keeper.stop()
            if way.way.what == "tunnel":
                self._tell.note(
                    f"the tunnel ends when this machine sleeps or is switched off: jobs go on, and 'slurmbus up "
                    f"{self.site}' asks for one login"
                )

    def _scheme(self) -> str:
        url = self.home.bus_url() if self._profile.bus == EMBEDDED else self._profile.bus[0]
        return urlsplit(url).scheme

    def _beside_a_full_home(self, layout: Layout, chosen: Plan, found: Probe) -> str:
        """Give the folder for the keys; a spool that nobody has put elsewhere goes beside it, too."""
        if not chosen.home_is_full:
            return f"{found.home}/{authority.REMOTE_FOLDER}"
        if self._profile.spool is None:
            self.home.change_site(self.site, spool=f"{layout.folder}/spool/{self.site}")
        self._tell.note(
            f"the home is full, so keys and spool go to {layout.folder}; compute nodes have to see that folder"
        )
        return f"{layout.own}/config"

    def _exchange_keys(self, remote: Remote, folder: str, found: Probe, before: Journal | None) -> Brought:
        def end_agent(old: Toml, new: Toml) -> None:
            if before is not None:
                self._end_before_a_move(remote, before, found, old, new)

        brought = bringing.bring(remote, self.home, self.site, folder, before, end_agent)
        self._outcome.changes += brought.changes
        self._tell.step("keys", f"in {folder}, readable by you alone; its authority is renewed")
        for words in brought.changes:
            self._tell.step("", words)
        return brought

    def _end_before_a_move(self, remote: Remote, before: Journal, found: Probe, old: Toml, new: Toml) -> None:
        """End an agent that is to use another spool or another bus.

        Its successor can't take over from it: it looks for it in the other spool, and asks the other bus for the lease.
        """
        spools = [_spool(bundle, self.site, found.home) for bundle in (old, new)]
        if spools[0] == spools[1] and old.get("servers") == new.get("servers"):
            return
        if spools[0] != spools[1]:
            jobs = {record.key for record in self._client.records() if not record.state.is_final}
            if jobs:
                raise SiteUnfit(
                    f"{len(jobs)} unfinished jobs lie in the spool {spools[0]}",
                    hint=f"wait for them or cancel them, then run it again; or stay there: --spool {spools[0]}",
                )
        layout = Layout(before.install_folder, self.site)
        KINDS[before.supervisor](layout, before.config, found.environment).leave(remote)

    def _start(
        self,
        remote: Remote,
        supervised: Supervised,
        version: str,
        found: Probe,
        before: Journal | None,
        *,
        anew: bool,
    ) -> None:
        if before is not None and before.supervisor != supervised.kind:
            layout = Layout(before.install_folder, self.site)
            KINDS[before.supervisor](layout, before.config, found.environment).forget(remote)
        if supervised.enter(remote):
            self._outcome.changes.append(f"{supervised.kind} keeps the agent running")
        running = supervised.runs_from(remote)
        replace = bool(running) and (anew or not running.endswith(f"/{version}"))
        self._tell.progress("starting the agent", 0, 0)
        try:
            did = supervised.start(remote, replace=replace)
        except SiteUnfit:
            if replace:  # the old one goes on, and shall be what cron starts, too
                installing.point(
                    remote,
                    supervised.layout,
                    running.rpartition("/")[2],
                    installing.command_script(supervised.layout, found),
                )
            raise
        if did:
            self._outcome.changes.append(did)
        self._tell.step("supervisor", f"{supervised.kind}{f': {did}' if did else ', and the agent runs'}")

    # ------------------------------------------------------------------ afterwards

    def _check(self, patience: float) -> None:
        self._tell.progress("waiting for the agent to answer over the bus", 0, 0)
        try:
            heartbeat = checking.await_agent(self._client, patience)
        except SiteUnreachable as error:
            raise SiteUnreachable(
                f"the agent was started and doesn't answer: {error.message}",
                hint=f"'slurmbus doctor {self.site}' looks at every link of the chain, 'slurmbus logs {self.site}' "
                "shows what it says",
            ) from error
        self._outcome.heartbeat = heartbeat
        self._say_agent(heartbeat)
        if not self._wishes.trial:
            return
        options = account.trial_options(self._outcome.account) if self._outcome.account else {}
        trial = checking.run_trial(self._client, options, lambda words: self._tell.progress(words, 0, 0))
        self._outcome.trial = trial
        self._tell.step("trial job", checking.trial_words(trial))

    def _say_agent(self, heartbeat: Heartbeat) -> None:
        seconds = checking.round_trip(self._client)
        health = heartbeat.scheduler
        slurm = f"{health.kind} answers" if health.responding else f"{health.kind} ({health.error})"
        self._tell.step(
            "ping", f"{heartbeat.host}, process {heartbeat.pid}: {seconds * 1000:.0f} ms there and back; {slurm}"
        )


def _spool(bundle: Toml, site: str, home: str) -> str:
    """Give the spool that a bundle names, as the agent reads it."""
    named = str(bundle.get("spool") or f"~/.slurmbus/{site}")
    return f"{home}{named[1:]}" if named.startswith("~/") else named


def _nothing(_target: str) -> None:
    """Put nothing else into a version."""


def _source(python: Python) -> str:
    return {"path": "it is there", "archive": "taken along"}.get(python.source, python.source)


def _is_here(found: Probe) -> bool:
    """Whether the site is this very machine, as in a trial."""
    return found.client in {"127.0.0.1", "::1"} and found.host == platform.node()
