"""The bus is killed, frozen, cut off and replaced while a real agent runs a real job that a client follows."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import RealAgent, agent_site, counted, counting, shell, size
from contract.bus_site import SITE, BusSite, joined, states, wait_until
from contract.proxy import Proxy
from slurmbus.client import Following, SiteClient
from slurmbus.connection import Connection
from slurmbus.events import Event, Finished, Waiting
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.messages import JobSpec
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

BEFORE, AFTER = 20_000, 20_000
LONGER_THAN_A_LEASE = 20.0
LINE = 8

Running = tuple[BusSite, RealAgent]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with agent_site(tmp_path) as running:
        yield running


def job(release: Path) -> JobSpec:
    return shell(counting(release, before=BEFORE, after=AFTER))


def take_until_counted(events: Following, seen: list[Event], lines: int = BEFORE) -> None:
    while size(seen) < lines * LINE:
        seen.append(next(events))


def take_until_unreachable(events: Following, seen: list[Event]) -> None:
    for event in events:
        seen.append(event)
        if isinstance(event, Waiting) and not event.bus_reachable:
            return


def check(seen: list[Event]) -> None:
    """Every byte once and in order, every state once, and the true end."""
    assert isinstance(seen[-1], Finished)
    assert seen[-1].record.state is JobState.COMPLETED
    assert joined(seen, Stream.STDOUT) == counted(BEFORE + AFTER)
    told = [
        state for state, following in zip(states(seen), [*states(seen)[1:], None], strict=True) if state != following
    ]
    assert len(told) == len(set(told)), told


def test_a_server_is_killed_again_and_again_while_a_job_writes(running: Running, tmp_path: Path) -> None:
    site, _ = running
    release = tmp_path / "release"
    with site.client.follow(site.client.submit(job(release))) as events:
        seen: list[Event] = []
        for part in range(4):
            take_until_counted(events, seen, BEFORE * part // 4 + 1)
            site.owner.server.kill()
            site.owner.server.restart()
        take_until_counted(events, seen)
        site.owner.server.kill()
        release.touch()  # the job writes on and ends without a bus
        take_until_unreachable(events, seen)
        site.owner.server.restart()
        seen.extend(events)
    check(seen)


def test_a_server_freezes_for_longer_than_a_lease(running: Running, tmp_path: Path) -> None:
    site, _ = running
    release = tmp_path / "release"
    with site.client.follow(site.client.submit(job(release)), patience=1.0) as events:
        seen: list[Event] = []
        take_until_counted(events, seen)
        frozen_at = time.monotonic()
        site.owner.server.signal(signal.SIGSTOP)
        try:
            release.touch()
            take_until_unreachable(events, seen)
            wait_until(lambda: time.monotonic() - frozen_at > LONGER_THAN_A_LEASE, "every lease to run out")
        finally:
            site.owner.server.signal(signal.SIGCONT)
        seen.extend(events)
    check(seen)


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[SiteClient, RealAgent, Proxy, Proxy]]:
    """Client and agent reach the server by links of their own."""
    with (
        agent_site(tmp_path) as (site, agent),
        Proxy(site.owner.address.port) as ours,
        Proxy(site.owner.address.port) as theirs,
    ):
        agent.stop()
        site.home.add_site(SITE, scheduler="local", spool=str(tmp_path / "spool"), agent_servers=[theirs.url])
        agent.start()
        agent.wait_until_it_serves()
        settings = ConnectionSettings(
            servers=(ours.url,),
            credentials=site.home.credentials,
            signing_key=site.home.signing_key,
            ca_file=site.home.tls.authority,
        )
        connection = Connection.get(settings)
        try:
            yield SiteClient(connection, SITE), agent, ours, theirs
        finally:
            connection.close()


@pytest.mark.parametrize("whose", ["client", "agent", "both"])
def test_a_half_open_link_is_left_for_one_that_works(
    proxied: tuple[SiteClient, RealAgent, Proxy, Proxy], whose: str, tmp_path: Path
) -> None:
    """Nothing is refused or closed; bytes only stop to pass."""
    client, _, ours, theirs = proxied
    release = tmp_path / "release"
    with client.follow(client.submit(job(release)), patience=1.0) as events:
        seen: list[Event] = []
        take_until_counted(events, seen)
        for proxy, name in ((ours, "client"), (theirs, "agent")):
            if whose in (name, "both"):
                proxy.swallow()
        release.touch()
        seen.extend(events)
    check(seen)


def empty(site: BusSite) -> None:
    """Replace the server by one without any data, on the same port and with the same users."""
    site.owner.server.kill()
    shutil.rmtree(site.home.bus_folder / "jetstream")
    site.owner.server.restart()


def test_a_request_that_no_agent_has_taken_reaches_an_empty_server(running: Running, tmp_path: Path) -> None:
    """The agent is away, and with the server's data the request and its file are gone."""
    site, agent = running
    agent.stop()
    source = tmp_path / "words.txt"
    source.write_text("one two three\n")
    files = (site.client.upload(source, "words.txt"), site.client.upload_bytes(b"four\n", "more.txt"))
    key = site.client.submit(shell("cat words.txt more.txt", files=files))
    with site.client.follow(key, patience=1.0) as events:
        seen: list[Event] = [next(events)]
        empty(site)
        while not (isinstance(seen[-1], Waiting) and seen[-1].bus_is_new):
            seen.append(next(events))
        agent.start()
        seen.extend(events)
    assert isinstance(seen[-1], Finished)
    assert seen[-1].record.state is JobState.COMPLETED
    assert joined(seen, Stream.STDOUT) == b"one two three\nfour\n"


def test_a_cancel_that_no_agent_has_taken_reaches_an_empty_server(running: Running, tmp_path: Path) -> None:
    site, agent = running
    key = site.client.submit(job(tmp_path / "never"))
    with site.client.follow(key, patience=1.0) as events:
        seen: list[Event] = []
        take_until_counted(events, seen)
        agent.stop()
        site.client.cancel(key, "enough")
        empty(site)
        agent.start()
        seen.extend(events)
    assert isinstance(seen[-1], Finished)
    assert seen[-1].record.state is JobState.CANCELLED


def test_an_empty_server_in_the_middle_of_a_job(running: Running, tmp_path: Path) -> None:
    """Records are rebuilt from the spool, with the controls that were answered; the reader goes on at its offset."""
    site, _ = running
    release = tmp_path / "release"
    key = site.client.submit(job(release))
    with site.client.follow(key, patience=1.0) as events:
        seen: list[Event] = []
        take_until_counted(events, seen)
        control = site.client.requeue(key)
        wait_until(lambda: (record := site.client.record(key)) is not None and record.requeues, "the refusal")
        bus_id = site.client.connection.session.bus_id
        empty(site)
        wait_until(lambda: site.client.connection.session.bus_id != bus_id, "the new bus to be set up")
        threading.Timer(0.0, release.touch).start()
        seen.extend(events)
    assert joined(seen, Stream.STDOUT) == counted(BEFORE + AFTER)
    assert isinstance(seen[-1], Finished)
    assert seen[-1].record.state is JobState.COMPLETED
    assert [one.id for one in seen[-1].record.requeues] == [control]
