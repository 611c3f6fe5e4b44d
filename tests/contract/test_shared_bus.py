"""A server that several teams share, as ``slurmbus bus init`` sets it up: real nats-server, real agents."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contract.agent_site import SITE, RealAgent, shell
from contract.bus_site import BusSite, joined, wait_until
from slurmbus.cli import main
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.home import Home, free_port
from slurmbus.settings import ConnectionSettings
from slurmbus.shared_bus import SharedBus
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.embedded import find_server, new_user_seed, public_key
from slurmbus_protocol.errors import BusRefused, BusUnreachable, InvalidName, InvalidSetting
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import agent_inbox
from slurmbus_protocol.subjects import Stream, new_ulid

OTHER = "other"


@dataclass
class Shared:
    """A shared server and the homes of its members."""

    folder: Path
    port: int
    websocket: int
    process: subprocess.Popen[bytes] | None = None
    connections: list[Connection] = field(default_factory=list)

    @property
    def bus(self) -> SharedBus:
        return SharedBus.open(self.folder / "server")

    def cli(self, *words: str) -> None:
        assert main(["bus", *words, "--folder", str(self.folder / "server")]) == 0

    def start(self) -> None:
        with (self.folder / "nats.log").open("wb") as log:
            self.process = subprocess.Popen([str(find_server()), "-c", str(self.bus.configuration)], stderr=log)
        wait_until(self.listens, f"the server; see {self.folder}/nats.log")

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def reload(self) -> None:
        assert self.process is not None
        assert int(self.bus.pid_file.read_text()) == self.process.pid
        self.process.send_signal(signal.SIGHUP)

    def member(self, team: str, site: str, *, urls: tuple[str, ...] = ()) -> Home:
        """Make a home with one site, as a member of a team does."""
        home = Home(self.folder / f"{team}-{site}")
        bus = self.bus
        self.cli("users", "add", team, f"{site}-people")
        profile = home.add_site(
            site,
            urls or bus.urls,
            credentials=self.folder / "server" / "keys" / f"{team}.{site}-people.nkey",
            ca_file=bus.authority,
            scheduler="local",
            spool=str(self.folder / f"spool-{team}-{site}"),
            python=sys.executable,
        )
        self.cli("users", "add", team, site, "--agent", "--nkey", profile.agent_nkey)
        return home

    def client(self, home: Home, site: str) -> SiteClient:
        connection = Connection.get(ConnectionSettings.of_site(home, site))
        self.connections.append(connection)
        return SiteClient(connection, site)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    one = Shared(tmp_path, free_port("127.0.0.1"), free_port("127.0.0.1"))
    words = ["--host", "localhost", "--listen", "127.0.0.1", "--port", str(one.port), "--websocket", str(one.websocket)]
    one.cli("init", *words, "--team", "physics", "--team", "chemistry")
    yield one
    one.close()


def agent_settings(home: Home, site: str) -> BusSettings:
    bundle = tomllib.loads(home.bundle_path(site).read_text())
    return BusSettings(tuple(bundle["servers"]), bundle["nkey_seed"], inbox=agent_inbox(site), ca=bundle["ca"])


def test_a_team_runs_jobs_and_another_sees_nothing(shared: Shared, tmp_path: Path) -> None:
    physics = shared.member("physics", SITE, urls=(f"wss://localhost:{shared.websocket}",))
    chemistry = shared.member("chemistry", SITE)
    shared.start()
    client = shared.client(physics, SITE)
    client.records()
    agent = RealAgent(BusSite(physics, None, client), tmp_path)  # type: ignore[arg-type]  # nobody here owns the server
    agent.start()
    try:
        agent.wait_until_it_serves()
        key = client.submit(shell("echo words"))
        with client.follow(key) as events:
            told = list(events)
        assert joined(told, Stream.STDOUT) == b"words\n"
        assert client.find(key).state is JobState.COMPLETED
        theirs = shared.client(chemistry, SITE)  # the same site's name, another account
        assert theirs.records() == []
        assert theirs.heartbeats() == []
    finally:
        agent.stop()


def test_a_site_is_removed_from_a_bus_that_others_use(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = shared.member("physics", SITE)
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    shared.start()
    client = shared.client(home, SITE)
    client.records()
    profile = home.path / "sites" / f"{SITE}.toml"
    kept, bundle = profile.read_bytes(), home.bundle_path(SITE).read_bytes()
    agent = RealAgent(BusSite(home, None, client), tmp_path)  # type: ignore[arg-type]  # nobody here owns the server
    agent.start()
    try:
        agent.wait_until_it_serves()
        capsys.readouterr()
        assert main(["sites", "remove", SITE]) == 0
        said = capsys.readouterr().err
        assert f"slurmbus bus users remove TEAM {SITE}" in said
        assert "still serves it" in said
        assert client.heartbeats()[0].alive
        profile.write_bytes(kept)
        home.bundle_path(SITE).write_bytes(bundle)
    finally:
        agent.stop()
    assert not client.heartbeats()[0].alive
    assert main(["sites", "remove", SITE]) == 0
    assert client.heartbeats() == []


def test_an_agent_speaks_for_its_own_site_only(shared: Shared) -> None:
    one, other = shared.member("physics", SITE), shared.member("physics", OTHER)
    shared.start()
    client = shared.client(other, OTHER)
    client.records()
    key = new_ulid()

    async def forge() -> None:
        async with asyncio.timeout(60), Bus(agent_settings(one, SITE)) as bus:
            await bus.publish(f"slurmbus.v1.{SITE}.job.{key}.0.state", b"own")
            for subject in (
                f"slurmbus.v1.{OTHER}.job.{key}.0.state",
                f"slurmbus.v1.{OTHER}.log.{key}.0.0.stdout",
                f"slurmbus.v1.{OTHER}.req.{key}",
                f"$KV.agents.{OTHER}",
                "$JS.API.STREAM.PURGE.STATES",
            ):
                with pytest.raises(BusRefused):
                    await bus.request(subject, b"forged", timeout=1.0)

    asyncio.run(forge())
    assert client.records() == []
    assert client.heartbeats() == []


def test_a_revoked_user_is_cut_off_at_the_reload(shared: Shared) -> None:
    home = shared.member("physics", SITE)
    shared.start()
    shared.client(home, SITE).records()

    async def scenario() -> None:
        async with asyncio.timeout(60), Bus(agent_settings(home, SITE)) as bus:
            assert await bus.probe()
            shared.cli("users", "remove", "physics", SITE)
            assert await bus.probe()
            shared.reload()
            while "authorization" not in bus.problem.lower():
                await asyncio.sleep(0.05)

    asyncio.run(scenario())
    with pytest.raises(BusRefused):
        asyncio.run(connect(agent_settings(home, SITE)))
    shared.client(home, SITE).records()


async def connect(settings: BusSettings) -> None:
    async with Bus(settings):
        pass


def test_nobody_gets_in_without_tls_or_key(shared: Shared) -> None:
    home = shared.member("physics", SITE)
    shared.start()
    settings = agent_settings(home, SITE)
    with pytest.raises(BusUnreachable, match="certificate verify failed"):
        asyncio.run(connect(BusSettings(settings.servers, settings.nkey_seed)))
    with pytest.raises(BusRefused):
        asyncio.run(connect(BusSettings(settings.servers, new_user_seed(), ca=settings.ca)))


def test_init_again_keeps_users_and_what_isnt_named(shared: Shared) -> None:
    shared.member("physics", SITE)
    before = shared.bus.configuration.read_text()
    shared.cli("init")
    assert shared.bus.configuration.read_text() == before
    shared.cli("init", "--team", "biology")
    assert shared.bus.configuration.read_text() != before
    assert [team.name for team in shared.bus.settings_in_force.teams] == ["biology", "chemistry", "physics"]
    for path in (shared.folder / "server").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert main(["bus", "users", "--json", "--folder", str(shared.folder / "server")]) == 0


def test_a_certificate_of_ones_own(shared: Shared, tmp_path: Path) -> None:
    certificate = shared.folder / "server" / "tls" / "server.pem"
    shared.cli("init", "--certificate", str(certificate), "--key", str(certificate))
    assert shared.bus.authority is None
    shared.start()


def test_what_cannot_be_is_said(shared: Shared, tmp_path: Path) -> None:
    bus = shared.bus
    seed = new_user_seed()
    with pytest.raises(InvalidSetting, match="no team 'maths'; there is chemistry, physics"):
        bus.add_user("maths", "ann")
    with pytest.raises(InvalidSetting, match="never give a seed"):
        bus.add_user("physics", "ann", seed)
    with pytest.raises(InvalidSetting, match="made where its site is"):
        bus.add_user("physics", "site", agent=True)
    with pytest.raises(InvalidName):
        bus.add_user("physics", "Ann.Other")
    with pytest.raises(InvalidName):
        bus.add_team("a b")
    bus.add_user("physics", "ann", public_key(seed))
    with pytest.raises(InvalidSetting, match="is ann's of team physics"):
        bus.add_user("chemistry", "bob", public_key(seed))
    assert not bus.remove_user("physics", "bob")
    with pytest.raises(InvalidSetting, match="comes with its key"):
        bus.make("localhost", certificate="/x")
    with pytest.raises(InvalidSetting, match="no name of a host"):
        bus.make("local host")
    with pytest.raises(InvalidSetting, match="bus init"):
        SharedBus.open(tmp_path / "nowhere")
