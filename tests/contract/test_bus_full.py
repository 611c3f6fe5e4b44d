"""Streams and disks without room: an alarm and a clear error, nothing lost, and all goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.agent_site import agent_site, counted, counting, shell, size
from contract.bus_site import JOB, SITE, BusSite, bus_site, joined, wait_until
from slurmbus.client import Following, SiteClient
from slurmbus.connection import Connection
from slurmbus.events import Event, Finished, Waiting
from slurmbus.home import Home
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import subjects
from slurmbus_protocol.errors import BusFull, BusNotStoring
from slurmbus_protocol.messages import JobSpec
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import BusLimits
from slurmbus_protocol.subjects import Stream, new_ulid

SMALL = 256 * 1024


def fill(site: BusSite, subject: str, piece: int) -> None:
    """Fill a stream with what belongs to nobody."""

    async def run(length: int) -> None:
        bus = await site.client.connection.session.bus()
        while True:
            await bus.publish(subject.format(key=new_ulid()), b"x" * length)

    for length in (piece, 100):
        with pytest.raises(BusFull):
            site.client.connection.run(run(length))


def enlarge(site: BusSite, stream: str) -> None:
    async def run() -> None:
        bus = await site.client.connection.session.bus()
        config: dict[str, Any] = (await bus.api(f"STREAM.INFO.{stream}"))["config"]
        await bus.api(f"STREAM.UPDATE.{stream}", {**config, "max_bytes": 64 * 1024**2})

    site.client.connection.run(run())


def take_until_alarmed(events: Following, seen: list[Event], words: str) -> None:
    for event in events:
        seen.append(event)
        if isinstance(event, Waiting) and event.agent and words in " ".join(event.agent.heartbeat.alarms):
            return


def piping(count: int) -> JobSpec:
    """Write so many Pipes messages of 1 KiB, without Dagster."""
    script = (
        "import base64, json, os, zlib\n"
        "params = json.loads(zlib.decompress(base64.b64decode(os.environ['DAGSTER_PIPES_MESSAGES'])))\n"
        "with open(params['path'], 'a') as file:\n"
        f"    for number in range({count}):\n"
        "        file.write(json.dumps({'n': number, 'x': 'x' * 1000}) + '\\n')\n"
    )
    return shell(f'exec python3 -c "{script}"', pipes_context=b"{}")


def test_a_job_whose_record_has_no_room_waits_and_says_so(tmp_path: Path) -> None:
    with agent_site(tmp_path, BusLimits(states=SMALL)) as (site, _):
        fill(site, f"{subjects.PREFIX}.other.job.{{key}}.0.state", 10_000)
        with site.client.follow(site.client.submit(shell("echo done")), patience=0.5) as events:
            seen: list[Event] = []
            take_until_alarmed(events, seen, "the bus takes no more records")
            enlarge(site, subjects.STATES)
            seen.extend(events)
        assert isinstance(seen[-1], Finished)
        assert seen[-1].record.state is JobState.COMPLETED
        assert joined(seen, Stream.STDOUT) == b"done\n"


def test_messages_without_room_wait_in_the_spool(tmp_path: Path) -> None:
    count = 1000
    with agent_site(tmp_path, BusLimits(messages=SMALL)) as (site, _):
        with site.client.follow(site.client.submit(piping(count)), patience=0.5) as events:
            seen: list[Event] = []
            take_until_alarmed(events, seen, "the bus takes no more messages")
            other = list(site.client.follow(site.client.submit(shell("echo other"))))
            assert joined(other, Stream.STDOUT) == b"other\n"
            enlarge(site, subjects.MESSAGES)
            seen.extend(events)
        assert isinstance(seen[-1], Finished)
        assert seen[-1].record.state is JobState.COMPLETED
        assert joined(seen, Stream.MESSAGES).count(b"\n") == count


def test_a_server_that_may_store_too_little_is_told_so(tmp_path: Path) -> None:
    """Its limit is smaller than what the streams together may hold."""
    tiny = BusLimits(requests=SMALL, states=SMALL, messages=SMALL, logs=SMALL, blobs=SMALL, agents=SMALL)
    home = Home(tmp_path / "slurmbus")
    home.add_site(SITE)
    with ServerOwner(home, limits=tiny):
        connection = Connection.get(ConnectionSettings.of_site(home, SITE))
        with pytest.raises(BusFull, match=r"too little storage for stream .* of .* bytes .*max_file_store"):
            SiteClient(connection, SITE).submit(JOB)
        connection.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB; mounting one needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be made here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def take_all_room(file: Path) -> None:
    with file.open("ab", buffering=0) as filler:
        for piece in (65536, 512):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    filler.write(b"x" * piece)


def look_until_it_stores(owner: ServerOwner, site: BusSite) -> str:
    keys: list[str] = []

    def stores() -> bool:
        owner.look()
        try:
            keys.append(site.client.submit(JOB))
        except BusNotStoring:
            return False
        return True

    wait_until(stores, "the server to store again", 60.0)
    return keys[-1]


def test_a_full_disk_is_told_and_gone_on_from(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurmbus.site.SUBMIT_PATIENCE", 3.0)
    large = type(JOB)(name=JOB.name, plan=JOB.plan, env={"LARGE": "x" * 20_000})
    filler = small_disk / "filler"
    with bus_site(small_disk) as site:
        before = site.client.submit(large)
        take_all_room(filler)
        with pytest.raises(BusNotStoring, match="make room on the NATS server's disk"):
            site.client.submit(large)
        assert site.client.connection.session.problem == BusNotStoring().message
        site.owner.look()
        assert site.client.records() == []  # what needs no room is still answered
        filler.unlink()
        after = look_until_it_stores(site.owner, site)
        assert site.client.is_expected(before)
        assert site.client.is_expected(after)


def test_a_job_goes_on_while_the_disk_of_the_bus_is_full(small_disk: Path, tmp_path: Path) -> None:
    """Its agent can't even store its heartbeat."""
    release = tmp_path / "release"
    filler = small_disk / "filler"
    count = 5000
    with agent_site(small_disk, spool=tmp_path / "spool") as (site, _):
        job = shell(counting(release, before=count, after=count))
        with site.client.follow(site.client.submit(job), patience=1.0) as events:
            seen: list[Event] = []
            while size(seen) < len(counted(count)):
                seen.append(next(events))
            take_all_room(filler)
            release.touch()
            for event in events:
                seen.append(event)
                if isinstance(event, Waiting) and event.agent and not event.agent.alive:
                    break
            filler.unlink()
            look_until_it_stores(site.owner, site)
            seen.extend(events)
        assert joined(seen, Stream.STDOUT) == counted(2 * count)
        assert isinstance(seen[-1], Finished)
        assert seen[-1].record.state is JobState.COMPLETED


def test_a_server_does_not_come_up_on_a_full_disk_until_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with bus_site(small_disk) as site:
        key = site.client.submit(JOB)
        take_all_room(filler)
        site.owner.server.kill()
        site.owner.look()
        assert not site.owner.server.alive
        filler.unlink()

        def came_up() -> bool:
            site.owner.look()
            return site.owner.server.alive

        wait_until(came_up, "the server to come up")
        assert site.client.is_expected(key)
