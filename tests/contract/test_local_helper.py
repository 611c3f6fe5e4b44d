"""The local helper with a real server and a real agent: found by its lock, warm for the next one, gone when idle."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.errors import LocalNotStarted
from slurmbus.events import Event, Finished, Output
from slurmbus.home import Home
from slurmbus.local import LocalFolder, ensure_local, stop_local
from slurmbus_protocol.messages import CommandPlan, Heartbeat, JobSpec, Ping
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "slurmbus")
    yield home
    stop_local(home)


def open_client(home: Home) -> SiteClient:
    settings, site = ensure_local(home)
    return SiteClient(Connection.get(settings), site)


@pytest.fixture
def client(home: Home) -> Iterator[SiteClient]:
    client = open_client(home)
    yield client
    client.connection.close()


def shell(script: str) -> JobSpec:
    return JobSpec(name="local", plan=CommandPlan(argv=("sh", "-c", script)))


def until(path: Path) -> str:
    """Shell that waits for a file, though not for ever: a failed test shall leave no job behind."""
    return f"for _ in $(seq 1200); do test -e {path} && break; sleep 0.05; done"


def output(events: list[Event]) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, Output) and e.stream is Stream.STDOUT)


def outcome(events: list[Event]) -> JobState:
    assert isinstance(events[-1], Finished)
    return events[-1].record.state


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    """A zombie that nobody has reaped counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes(home: Home) -> dict[str, int]:
    folder = LocalFolder.of(home)
    helper = folder.pid()
    assert helper is not None
    server = json.loads((folder.home.bus_folder / "server.json").read_text())["pid"]
    agent = open_client(home).heartbeats()[0].heartbeat.pid
    return {"helper": helper, "server": server, "agent": agent}


def test_a_job_runs_here_with_a_file_and_brings_one_back(client: SiteClient, tmp_path: Path) -> None:
    source = tmp_path / "words.txt"
    source.write_text("one two three\n")
    ref = client.upload(source, "data/words.txt")
    assert client.upload_bytes(b"", "empty").size == 0
    job = JobSpec(
        name="count",
        plan=CommandPlan(argv=("sh", "-c", "wc -w < data/words.txt | tee count.txt; echo oops >&2")),
        files=(ref,),
        outputs=("count.txt",),
    )
    key = client.submit(job)
    events = list(client.follow(key))
    assert outcome(events) is JobState.COMPLETED
    assert output(events).strip() == b"3"
    (came_back,) = events[-1].record.outputs if isinstance(events[-1], Finished) else ()
    assert client.download(came_back, tmp_path / "back" / "count.txt").read_bytes() == output(events)
    assert client.wait_for_accounting(key, 30).accounting is not None
    assert [record.key for record in client.records()] == [key]
    assert client.find(key[:20].lower()).key == key
    job_id = client.find(key).job_id
    assert client.find(str(job_id)).key == key


def test_a_failing_and_a_cancelled_job(client: SiteClient) -> None:
    assert outcome(list(client.follow(client.submit(shell("exit 3"))))) is JobState.FAILED
    key = client.submit(shell("echo started; sleep 600"))
    seen = []
    with client.follow(key) as events:
        for event in events:
            seen.append(event)
            if isinstance(event, Output):
                client.cancel(key, "enough")
    assert outcome(seen) is JobState.CANCELLED


def test_one_from_before_tls_is_replaced(home: Home, client: SiteClient) -> None:
    folder = LocalFolder.of(home)
    old = json.loads(folder.ready.read_text())
    folder.ready.write_text(json.dumps({**old, "url": old["url"].replace("tls://", "nats://")}))
    ensure_local(home)
    assert folder.pid() != old["pid"]
    assert client.ask("info", Ping(sent_at=time.time()), Heartbeat, timeout=20.0)


def test_it_is_found_again_and_stopped(home: Home, client: SiteClient) -> None:
    pid = LocalFolder.of(home).pid()
    assert ensure_local(home)[0] == client.connection.settings
    assert LocalFolder.of(home).pid() == pid
    assert stop_local(home)
    assert not stop_local(home)
    assert pid is not None
    assert not lives(pid)


def test_another_program_has_taken_its_port(home: Home) -> None:
    folder = LocalFolder.of(home)
    folder.make()
    before = folder.home.set_bus_address()
    with socket.create_server((before.host, before.port)):
        client = open_client(home)
        after = folder.home.bus_address()
        assert after is not None
        assert after.port != before.port
        assert client.records() == []
        client.connection.close()


def test_several_that_start_it_at_once_get_one(home: Home) -> None:
    starter = f"""
import pathlib
from slurmbus.home import Home
from slurmbus.local import LocalFolder, ensure_local
home = Home(pathlib.Path({str(home.path)!r}))
print("ready", flush=True)
input()
ensure_local(home)
print(LocalFolder.of(home).pid(), flush=True)
"""
    pipe = subprocess.PIPE
    starters = [
        subprocess.Popen([sys.executable, "-c", starter], stdin=pipe, stdout=pipe, text=True, bufsize=1)
        for _ in range(4)
    ]
    for process in starters:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in starters:
        assert process.stdin
        process.stdin.write("go\n")
    pids = {process.communicate(timeout=60)[0] for process in starters}
    assert len(pids) == 1
    assert pids.pop().strip().isdecimal()


def test_two_homes_do_not_interfere(home: Home, client: SiteClient, tmp_path: Path) -> None:
    other_home = Home(tmp_path / "other")
    other = open_client(other_home)
    try:
        key = other.submit(shell("echo other"))
        assert output(list(other.follow(key))) == b"other\n"
        assert client.records() == []
        assert stop_local(other_home)
        assert LocalFolder.of(home).is_alive()
    finally:
        other.connection.close()


def test_it_ends_when_nobody_needs_it_and_not_before_its_jobs(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step starts a job and is killed; the helper stays until the job has ended, and then a little longer."""
    monkeypatch.setenv("SLURMBUS_LOCAL_IDLE", "0.5")
    release, done = tmp_path / "release", tmp_path / "done"
    step = f"""
import os, pathlib, signal
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.home import Home
from slurmbus.local import ensure_local
from slurmbus_protocol.messages import CommandPlan, Heartbeat, JobSpec, Ping
settings, site = ensure_local(Home(pathlib.Path({str(home.path)!r})))
script = "{until(release)}; touch {done}"
client = SiteClient(Connection.get(settings), site)
key = client.submit(JobSpec(name="long", plan=CommandPlan(argv=("sh", "-c", script))))
for event in client.follow(key):
    if event.record is not None and event.record.state == "RUNNING":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", step], check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = LocalFolder.of(home)
    pid = folder.pid()
    assert pid is not None
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        assert lives(pid)
        time.sleep(0.1)
    release.touch()
    wait_until(lambda: not folder.is_alive(), "the helper to end")
    assert done.exists()


def test_a_killed_helper_takes_server_and_agent_along_and_leaves_the_jobs(
    home: Home, client: SiteClient, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    key = client.submit(shell(f"echo before; {until(release)}; echo after"))
    with client.follow(key) as events:
        while not isinstance(next(events), Output):
            pass
    before = processes(home)
    os.kill(before["helper"], signal.SIGKILL)
    for name, pid in before.items():
        wait_until(lambda pid=pid: not lives(pid), f"the {name} to die with the helper")
    client = open_client(home)
    after = processes(home)
    assert not set(before.values()) & set(after.values())
    release.touch()
    seen = list(client.follow(key))
    assert output(seen) == b"before\nafter\n"
    assert outcome(seen) is JobState.COMPLETED


@pytest.mark.parametrize("victim", ["agent", "server"])
def test_a_killed_child_is_started_again(home: Home, client: SiteClient, victim: str, tmp_path: Path) -> None:
    release = tmp_path / "release"
    key = client.submit(shell(f"echo before; {until(release)}; echo after"))
    with client.follow(key) as events:
        seen = [next(events)]
        while not isinstance(seen[-1], Output):
            seen.append(next(events))
        os.kill(processes(home)[victim], signal.SIGKILL)
        release.touch()
        seen.extend(events)
    assert output(seen) == b"before\nafter\n"
    assert outcome(seen) is JobState.COMPLETED


def test_an_agent_that_cannot_start_is_told(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "slurmbus_agent"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('this agent is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(LocalNotStarted, match="this agent is broken"):
        ensure_local(home)
    assert not LocalFolder.of(home).is_alive()
    monkeypatch.undo()
    ensure_local(home)
