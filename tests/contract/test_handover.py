"""Handing over: again and again a fresh process goes on with the site's jobs, and neither a job nor a byte is lost.

A real agent on a real bus whose CPU time is limited to little more than its start costs, so that it hands over as soon
as it leads; its jobs are processes of this machine.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import SITE, RealAgent, agent_site, counted, shell
from contract.bus_site import BusSite, joined, wait_until
from slurmbus.client import SiteClient
from slurmbus.events import Event
from slurmbus_agent.guest import processes, waiter
from slurmbus_protocol.messages import Heartbeat
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

MOST_CPU_SECONDS = 1.0


def limit_cpu_time(site: BusSite, seconds: float) -> None:
    settings = site.home.bundle_path(SITE).with_name(f"{SITE}.settings.toml")
    settings.write_text(f"[limits]\ncpu_minutes = {seconds / 60}\n")


def leader(client: SiteClient) -> Heartbeat | None:
    return next((status.heartbeat for status in client.heartbeats() if status.alive and status.heartbeat.leader), None)


def wait_for_handovers(site: BusSite, number: int) -> Heartbeat:
    def later() -> bool:
        found = leader(site.client)
        return found is not None and found.vitals.handovers >= number

    wait_until(later, f"hand-over {number}", 120.0)
    found = leader(site.client)
    assert found is not None
    return found


def parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[BusSite, RealAgent]]:
    with agent_site(tmp_path) as (site, agent):
        yield site, agent


def test_jobs_and_bytes_outlive_one_agent_after_the_other(place: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    site, agent = place
    agent.stop()
    limit_cpu_time(site, MOST_CPU_SECONDS)
    agent.start()
    assert agent.process is not None
    first = agent.process.pid
    release = tmp_path / "release"
    # So many lines that there is always something under way, until three agents have gone.
    script = f"n=0; until [ -e {release} ]; do n=$((n+1)); printf '%07d\\n' $n; sleep 0.02; done"
    keys = [site.client.submit(shell(script)) for _ in range(6)]
    wait_for_handovers(site, 2)
    late = site.client.submit(shell("echo late"))
    beat = wait_for_handovers(site, 3)
    release.touch()
    for key in [*keys, late]:
        with site.client.follow(key) as events:
            story: list[Event] = list(events)
        output = joined(story, Stream.STDOUT)
        record = site.client.record(key)
        assert record is not None
        assert record.state is JobState.COMPLETED, record
        assert len(record.starts) == 1
        lines = output.count(b"\n")
        assert output == (b"late\n" if key == late else counted(lines))
    assert agent.process.poll() is None, "whoever looks after the agent knows one process"
    assert "waiter.py" in command_of(first)
    assert parent_of(beat.pid) == first
    assert processes.resident(first) < 16 * 1024 * 1024
    used = {budget.name: budget for budget in beat.vitals.budgets}["cpu-time"]
    assert used.limit == pytest.approx(MOST_CPU_SECONDS)


def test_whoever_stops_the_first_process_stops_the_agent(place: tuple[BusSite, RealAgent]) -> None:
    site, agent = place
    assert agent.process is not None
    agent.process.send_signal(signal.SIGUSR1)
    beat = wait_for_handovers(site, 1)
    assert beat.pid != agent.process.pid
    os.kill(agent.process.pid, signal.SIGUSR1)
    second = wait_for_handovers(site, 2)
    agent.process.terminate()
    assert agent.process.wait(30) == 0
    assert not Path(f"/proc/{second.pid}").exists()
    assert leader(site.client) is None


def test_an_agent_whose_first_process_is_killed_ends_by_itself(place: tuple[BusSite, RealAgent]) -> None:
    site, agent = place
    assert agent.process is not None
    agent.process.send_signal(signal.SIGUSR1)
    beat = wait_for_handovers(site, 1)
    wait_until(lambda: "waiter.py" in command_of(agent.process.pid), "the waiter")  # type: ignore[union-attr]
    agent.process.kill()
    agent.process.wait()
    wait_until(lambda: not Path(f"/proc/{beat.pid}").exists(), "the end of the agent")


def test_the_waiter_ends_as_its_last_agent_does() -> None:
    pid = os.fork()
    if pid == 0:
        child = os.fork()
        if child == 0:
            os._exit(7)
        waiter.become(child, 1, [])
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
