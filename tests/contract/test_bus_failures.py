"""The bus is killed, restarted and frozen under a client that submits and follows."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from contract.bus_site import JOB, SITE, BusSite, bus_site, joined, next_news, states, wait_until
from slurmbus import session
from slurmbus.connection import Connection
from slurmbus.events import Finished, Output, StateChanged, Waiting
from slurmbus.home import free_port
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus.site import Site
from slurmbus.testing import ScriptedAgent, ended_start
from slurmbus_protocol import subjects
from slurmbus_protocol.errors import BusFull, BusRefused, BusUnreachable, SiteUnreachable, TooLarge
from slurmbus_protocol.messages import Ping, Pong, Submit
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import BusLimits
from slurmbus_protocol.subjects import Stream, new_ulid


@pytest.fixture
def site(tmp_path: Path) -> Iterator[BusSite]:
    with bus_site(tmp_path) as site:
        yield site


async def count(agent: ScriptedAgent, key: str, numbers: range) -> None:
    for number in numbers:
        for stream in (Stream.STDOUT, Stream.MESSAGES):
            await agent.chunk(key, stream, number * 4, f"{number:03}\n".encode())


async def finish(agent: ScriptedAgent, key: str, size: int) -> None:
    start = ended_start(sizes={Stream.STDOUT: size, Stream.MESSAGES: size})
    await agent.record(key, JobState.COMPLETED, exit_code=0, starts=(start,))


def test_a_killed_server_loses_and_repeats_nothing(site: BusSite) -> None:
    """Killed in the middle of the output, twice, while the reader and the agent are connected."""
    server = site.owner.server

    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        events = asyncio.create_task(site.follow(key))
        await agent.record(key, JobState.RUNNING)
        for part in range(3):
            await count(agent, key, range(part * 50, part * 50 + 50))
            if part < 2:
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.restart)
        await finish(agent, key, 600)
        seen = await events
        expected = "".join(f"{number:03}\n" for number in range(150)).encode()
        assert joined(seen, Stream.STDOUT) == expected
        assert joined(seen, Stream.MESSAGES) == expected
        assert states(seen) == [JobState.RUNNING, JobState.COMPLETED]

    # the thread that starts a tied server must live on: to_thread's does, as long as the loop
    site.play(scenario)


def test_a_submission_survives_a_server_that_is_away(site: BusSite) -> None:
    site.owner.server.kill()
    key = new_ulid()
    submitted: list[str] = []
    other = threading.Thread(target=lambda: submitted.append(site.client.submit(JOB, key=key)))
    other.start()
    connected = site.client.connection.session.bus
    wait_until(lambda: not site.client.connection.run(connected()).connected, "the client to notice")
    site.owner.look()  # starts it again
    other.join(30)
    assert submitted == [key]
    assert site.client.submit(JOB, key=key) == key  # repeated: the first one counts

    async def scenario(agent: ScriptedAgent) -> None:
        first = await agent.request()
        assert isinstance(first, Submit)
        assert first.key == key
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await agent.request()

    site.play(scenario)


def test_a_frozen_server_is_waited_for(site: BusSite) -> None:
    """Connections to a stopped process stay open: only missing answers tell."""
    server = site.owner.server

    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        events = asyncio.create_task(site.follow(key))
        await agent.record(key, JobState.RUNNING)
        await count(agent, key, range(20))
        server.signal(signal.SIGSTOP)
        try:
            another = asyncio.create_task(asyncio.to_thread(site.client.submit, JOB))
            with pytest.raises(BusUnreachable):
                await agent.bus.publish("slurmbus.v1.scripted.job.x.0.state", b"", timeout=0.5)
            assert not another.done()
        finally:
            server.signal(signal.SIGCONT)
        await count(agent, key, range(20, 40))
        await finish(agent, key, 160)
        seen = await events
        assert joined(seen, Stream.STDOUT) == "".join(f"{number:03}\n" for number in range(40)).encode()
        request = await agent.request()
        assert isinstance(request, Submit)
        assert request.key == await another

    site.play(scenario)


def test_an_empty_server_in_its_place_is_set_up_and_read_from_its_beginning(site: BusSite) -> None:
    """Its data is gone; the agent goes on at its checkpoint, and what is missing comes from the spool."""
    server = site.owner.server
    everything = b"".join(b"%03d\n" % number for number in range(60))

    async def scenario(agent: ScriptedAgent) -> None:
        key = new_ulid()
        for stream in (Stream.STDOUT, Stream.MESSAGES):
            agent.spool[key, 0, stream] = everything
        with site.client.follow(key) as events:
            await agent.record(key, JobState.RUNNING)
            await count(agent, key, range(40))
            seen = []
            while sum(len(event.data) for event in seen if isinstance(event, Output)) < 2 * 160:
                seen.append(await asyncio.to_thread(next, events))
            await asyncio.to_thread(replace_by_empty)
            agent.forget()
            session = site.client.connection.session
            await asyncio.to_thread(wait_until, lambda: session.bus_id != bus_id, "the new bus to be set up")
            await agent.record(key, JobState.RUNNING)
            for stream in (Stream.STDOUT, Stream.MESSAGES):
                await agent.chunk(key, stream, 200, everything[200:])
            await finish(agent, key, 240)
            seen += await asyncio.to_thread(list, events)
        assert joined(seen, Stream.STDOUT) == everything
        assert joined(seen, Stream.MESSAGES) == everything
        assert isinstance(seen[-1], Finished)
        await asyncio.to_thread(site.client.submit, JOB)
        assert isinstance(await agent.request(), Submit)

    def replace_by_empty() -> None:
        server.kill()
        shutil.rmtree(site.home.bus_folder / "jetstream")
        server.restart()

    bus_id = site.client.connection.session.bus_id
    site.play(scenario)


def test_a_server_that_moved_to_another_port_is_found_again(site: BusSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ADDRESS_INTERVAL", 0.05)
    site.client.connection.close()  # so that it begins anew with this
    key = site.client.submit(JOB)
    with site.client.follow(key) as events:
        site.owner.server.stop()
        with ServerOwner(site.home, port=free_port("127.0.0.1")):

            async def scenario(agent: ScriptedAgent) -> None:
                await agent.record(key, JobState.RUNNING)
                assert isinstance(await asyncio.to_thread(next_news, events), StateChanged)

            site.play(scenario)


def test_the_caller_is_told_that_the_bus_is_away(site: BusSite) -> None:
    with site.client.follow(new_ulid(), patience=0.1) as events:
        assert isinstance(next(events), Waiting)
        site.owner.server.kill()
        for event in events:
            assert isinstance(event, Waiting)
            if not event.bus_reachable:
                break


def test_nobody_there(site: BusSite) -> None:
    with pytest.raises(SiteUnreachable, match="none ever has"):
        site.client.ask("ping", Ping(sent_at=0), Pong, timeout=1)
    site.play(lambda agent: agent.heartbeat(host="login1"))
    with pytest.raises(SiteUnreachable, match="from login1, is 0 s old"):
        site.client.ask("ping", Ping(sent_at=0), Pong, timeout=1)
    site.owner.server.stop()
    settings = ConnectionSettings.of_site(site.home, SITE)
    fresh = Connection(settings)
    with pytest.raises(BusUnreachable):
        fresh.run(Site(fresh.session, SITE).records())
    fresh.close()


def test_what_a_cancel_waits_for_is_told_and_it_can_be_interrupted(site: BusSite) -> None:
    site.client.records()
    site.owner.server.kill()
    wait_until(lambda: "no connection" in site.client.connection.session.problem, "the client to miss its server")
    said: list[str] = []
    with pytest.raises(BusUnreachable):
        site.client.cancel(new_ulid(), patience=3.0, tell=said.append)
    assert len(said) == 1
    assert "hasn't acknowledged the request yet (no connection to tls://" in said[0]

    def interrupt(_: str) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        site.client.cancel(new_ulid(), patience=600.0, tell=interrupt)


def test_one_record_that_cannot_be_read_hides_no_other(site: BusSite, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        good, newer = new_ulid(), new_ulid()
        await agent.record(good, JobState.RUNNING)
        await agent.bus.publish(subjects.state(SITE, newer, 0), msgspec.msgpack.encode(["record", 99, {}]))
        await agent.bus.publish(subjects.standby(SITE, "newer"), msgspec.msgpack.encode(["heartbeat", 99, {}]))
        await agent.heartbeat()
        assert [record.key for record in await asyncio.to_thread(site.client.records)] == [good]
        assert len(await asyncio.to_thread(site.client.heartbeats)) == 1
        assert f"{newer}.0.state is left out" in caplog.text

    site.play(scenario)


def test_a_removed_user_is_told_so(site: BusSite) -> None:
    """The client's key isn't the server's any more: a follower waits and says why, a request is refused at once."""
    server = site.owner.server
    users = server.users
    with site.client.follow(new_ulid(), patience=0.2) as events:
        assert isinstance(next(events), Waiting)
        server.set_users(users[1:])
        said = next(event for event in events if isinstance(event, Waiting) and not event.bus_reachable)
        while "authorization" not in said.problem.lower():
            said = next(event for event in events if isinstance(event, Waiting))
        with pytest.raises(BusRefused, match=r"(?i)authorization.*doesn't know this key"):
            site.client.submit(JOB)
        server.set_users(users)
        while not said.bus_reachable:
            said = next(event for event in events if isinstance(event, Waiting))
    assert site.client.submit(JOB)


def test_a_user_with_too_few_permissions_is_told_which(site: BusSite) -> None:
    server = site.owner.server
    client, *agents = server.users
    allowed = ["$JS.API.>", "_INBOX.>", "blob.>"]
    server.set_users([replace(client, permissions={"publish": {"allow": allowed}}), *agents])

    refusals: list[str] = []

    def refused() -> bool:
        try:
            site.client.submit(JOB)
        except BusRefused as error:
            refusals.append(error.message)
        return bool(refusals)

    wait_until(refused, "the server to take over the permissions")
    assert f"publish to slurmbus.v1.{SITE}.req." in refusals[0]


def test_evicted_logs_come_from_the_spool(tmp_path: Path) -> None:
    """The log stream holds 1 MiB and the job writes 8: what the slow reader misses is asked for."""
    with bus_site(tmp_path, limits=BusLimits(logs=1024**2)) as site:

        async def scenario(agent: ScriptedAgent) -> None:
            key = new_ulid()
            everything = b"".join(b"%07d\n" % number for number in range(1024**2))
            agent.spool[key, 0, Stream.STDOUT] = everything
            step = 100_000
            with site.client.follow(key) as events:
                await agent.record(key, JobState.RUNNING)
                assert isinstance(await asyncio.to_thread(next_news, events), StateChanged)
                for offset in range(0, len(everything), step):
                    await agent.chunk(key, Stream.STDOUT, offset, everything[offset : offset + step])
                start = ended_start(sizes={Stream.STDOUT: len(everything)})
                await agent.record(key, JobState.COMPLETED, starts=(start,))
                seen = await asyncio.to_thread(list, events)
            assert joined(seen, Stream.STDOUT) == everything
            # a reader that comes later finds the end of it on the bus only
            assert joined(await site.follow(key), Stream.STDOUT) == everything

        site.play(scenario)


def test_a_full_bus_refuses_new_requests_clearly(tmp_path: Path) -> None:
    with bus_site(tmp_path, limits=BusLimits(requests=64 * 1024)) as site:
        large = type(JOB)(name=JOB.name, plan=JOB.plan, env={"LARGE": "x" * 20_000})
        fitting = 64 * 1024 // 20_000
        for _ in range(fitting):
            site.client.submit(large)
        with pytest.raises(BusFull, match=r"stream REQUESTS .* is full and takes no new requests .*max-bytes"):
            site.client.submit(large)
        with pytest.raises(TooLarge):
            site.client.submit(type(JOB)(name=JOB.name, plan=JOB.plan, env={"LARGE": "x" * 1_000_000}))
