"""Two sites on one real server don't see each other; sites come and go while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.bus_site import JOB, wait_until
from slurmbus.cli import main
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.home import Home
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus.testing import ScriptedAgent
from slurmbus_protocol import subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.messages import Submit
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "slurmbus")
    for name in ("alice", "bob"):
        home.add_site(name)
    yield home
    Connection.get(ConnectionSettings.of_site(home, "alice")).close()


def open_client(home: Home, site: str) -> SiteClient:
    client = SiteClient(Connection.get(ConnectionSettings.of_site(home, "alice")), site)
    client.records()
    return client


async def refused(agent: ScriptedAgent, subject: str, data: bytes = b"") -> bool:
    """A refused permission shows as an answer that never comes."""
    try:
        await agent.bus.request(subject, data, timeout=0.5)
    except BusUnreachable:
        return True
    return False


def test_an_agent_reaches_its_own_site_only(home: Home) -> None:
    with ServerOwner(home):
        alice, bob = open_client(home, "alice"), open_client(home, "bob")

        async def scenario() -> None:
            async with (
                asyncio.timeout(60),
                ScriptedAgent(home, "alice") as of_alice,
                ScriptedAgent(home, "bob") as of_bob,
            ):
                key = await asyncio.to_thread(bob.submit, JOB)
                await of_bob.record(key, JobState.RUNNING)
                await of_bob.chunk(key, Stream.STDOUT, 0, b"secret")
                await of_bob.heartbeat()
                state = subjects.state("bob", key, 0)
                log = subjects.stream("bob", key, 0, 0, Stream.STDOUT)
                api = "$JS.API"
                of_others = [
                    state,
                    log,
                    subjects.stream("bob", key, 0, 0, Stream.MESSAGES),
                    subjects.request("bob", new_ulid()),
                    subjects.request("alice", new_ulid()),  # agents submit nothing, not even to themselves
                    subjects.lease("bob"),
                    subjects.rpc("bob", "read"),
                    f"{api}.DIRECT.GET.STATES.{state}",
                    f"{api}.DIRECT.GET.LOGS.{log}",
                    f"{api}.DIRECT.GET.KV_agents.{subjects.lease('bob')}",
                    f"{api}.CONSUMER.MSG.NEXT.REQUESTS.{subjects.consumer('bob')}",
                    f"{api}.CONSUMER.CREATE.STATES",
                    f"{api}.STREAM.INFO.STATES",
                    f"{api}.STREAM.PURGE.STATES",
                ]
                answers = await asyncio.gather(*(refused(of_alice, subject) for subject in of_others))
                assert dict(zip(of_others, answers, strict=True)) == dict.fromkeys(of_others, True)
                own = await of_bob.bus.last(subjects.STATES, state)  # the owner can, so the subject was right
                assert own is not None
                request = await of_bob.request()
                assert isinstance(request, Submit)
                assert request.key == key

        asyncio.run(scenario())
        assert alice.records() == []
        assert alice.heartbeats() == []
        assert len(bob.records()) == 1
        assert [status.heartbeat.site for status in bob.heartbeats()] == ["bob"]


def test_sites_come_and_go_without_a_restart(home: Home) -> None:
    with ServerOwner(home) as owner:
        client = open_client(home, "alice")

        async def connects(name: str) -> bool:
            agent = ScriptedAgent(home, name)
            try:
                await agent.bus.__aenter__()
            except BusUnreachable:
                return False
            await agent.bus.__aexit__()
            return True

        def check(name: str) -> bool:
            owner.look()
            return asyncio.run(connects(name))

        assert check("alice")
        home.add_site("carol")
        wait_until(lambda: check("carol"), "carol's agent to be let in")
        removed = ScriptedAgent(home, "carol")  # has read its bundle
        home.remove_site("carol")

        async def is_out() -> bool:
            try:
                await removed.bus.__aenter__()
            except BusUnreachable:
                return True
            await removed.bus.__aexit__()
            return False

        def gone() -> bool:
            owner.look()
            return asyncio.run(is_out())

        wait_until(gone, "carol's agent to be kept out")
        before = client.connection.session.bus
        assert client.connection.run(before()).connected
        assert check("alice")


def test_nothing_is_shown_of_a_site_that_was_removed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    with ServerOwner(home):
        alice, bob = open_client(home, "alice"), open_client(home, "bob")

        async def beat(site: str) -> None:
            async with ScriptedAgent(home, site) as agent:
                await agent.heartbeat()

        for site in ("alice", "bob"):
            asyncio.run(beat(site))
        assert main(["sites", "remove", "bob"]) == 0
        assert bob.heartbeats() == []
        assert len(alice.heartbeats()) == 1


def test_a_second_owner_is_told(home: Home) -> None:
    with ServerOwner(home), pytest.raises(BusUnreachable, match="already runs"), ServerOwner(home):
        pass


def test_the_port_belongs_to_another_home(home: Home, tmp_path: Path) -> None:
    """Its answer isn't taken for ours."""
    with ServerOwner(home) as owner:
        other = Home(tmp_path / "other")
        with pytest.raises(BusUnreachable, match="didn't come up"), ServerOwner(other, port=owner.address.port):
            pass


async def _reads_as_client(home: Home) -> None:
    async with Bus(ConnectionSettings.of_site(home, "alice").bus_settings()) as bus:
        assert await bus.probe()


def test_nobody_without_a_key_gets_in(home: Home, tmp_path: Path) -> None:
    stranger = Home(tmp_path / "stranger")
    stranger.add_site("alice")
    with ServerOwner(home) as owner:
        asyncio.run(_reads_as_client(home))
        settings = ConnectionSettings(
            servers=(owner.address.url,), credentials=stranger.credentials, ca_file=home.tls.authority
        )
        connection = Connection(settings)
        with pytest.raises(BusUnreachable, match=r"(?i)authorization"):
            connection.run(connection.session.bus())
        connection.close()
