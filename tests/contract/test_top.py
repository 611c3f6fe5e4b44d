"""``slurmbus top`` in a real terminal, in a pipe, and as JSON, with a real bus."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contract.bus_site import SITE, BusSite, bus_site
from slurmbus.testing import ScriptedAgent
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.messages import BudgetUse, Partition, Partitions, SchedulerHealth, Vitals
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid

PROGRAM = [sys.executable, "-m", "slurmbus", "top"]
JOBS = 40
PATIENCE = 60.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusSite]:
    with bus_site(tmp_path_factory.mktemp("top")) as one:
        one.home.add_site("other")
        one.play(fill)
        yield one


async def fill(agent: ScriptedAgent) -> None:
    await beat(agent)
    for number in range(JOBS):
        await agent.record(new_ulid(), JobState.PENDING, name=f"job-{number}", reason="Priority")


async def beat(agent: ScriptedAgent, **changes: Any) -> None:
    """Say that it is there, for an hour."""
    budgets = (BudgetUse(name="cpu-time", used=3.0, limit=4.0, unit="s"),)
    await agent.heartbeat(
        host="login01",
        interval=1200.0,
        lease_seconds=3600.0,
        scheduler=SchedulerHealth(kind="native", responding=True, since=0.0, latency=0.002, version="26.05"),
        vitals=Vitals(jobs={"PENDING": JOBS}, budgets=budgets, bus_latency=0.001),
        **changes,
    )


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, site: BusSite, columns: int, lines: int) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        environment = {**os.environ, "SLURMBUS_HOME": str(site.home.path), "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(PROGRAM, stdin=slave, stdout=slave, stderr=slave, env=environment)
        self.seen = ""

    def wait_for(self, pattern: str) -> None:
        """Read until this is on the screen, in what has come since the last time."""
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen[-3000:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self.master, 65536).decode(errors="replace"))
        self.seen = self.seen[found.end() :]

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Press q, and see that the terminal is as it was."""
        self.press(b"q")
        self.wait_for_end()
        assert termios.tcgetattr(self.slave)[:4] == self.before[:4]
        return self.process.wait(10)

    def wait_for_end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it goes on"
            if select.select([self.master], [], [], 0.05)[0]:
                os.read(self.master, 65536)


@contextmanager
def terminal(site: BusSite, columns: int = 150, lines: int = 30) -> Iterator[Terminal]:
    one = Terminal(site, columns, lines)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        os.close(one.master)
        os.close(one.slave)


def test_a_frame_changes_by_itself_and_by_keys(site: BusSite) -> None:
    with terminal(site) as screen:
        screen.wait_for(rf"slurmbus [\d:]+\s+{JOBS} pending")
        screen.wait_for(r"BUDGETS")
        screen.wait_for(r"other\s+no agent yet")
        screen.wait_for(r"scripted\s+login01\s+serves")
        screen.wait_for(r"cpu-time 75%")
        screen.wait_for(rf"jobs 1 to \d+ of {JOBS}")
        screen.wait_for(r"job-39 +PENDING .* Priority +scripted")
        screen.press(b"\x1b[B\x1b[B")
        screen.wait_for(rf"jobs 3 to \d+ of {JOBS}")
        screen.press(b"\x1b[A")
        screen.wait_for(rf"jobs 2 to \d+ of {JOBS}")
        site.play(alarm)
        screen.wait_for(r"· scripted: the bus takes no more LOGS")
        assert screen.end() == 0


def test_a_job_and_the_partitions_by_keys(tmp_path: Path) -> None:
    """Enter shows the job on top, with the output that comes; p asks the agents; Escape goes back."""

    async def played(agent: ScriptedAgent) -> None:
        key = new_ulid()
        await agent.record(key, JobState.RUNNING, name="newest")
        found = Partitions(
            partitions=(Partition(name="boost", state="UP", nodes=12, cpus=96, node_states={"idle": 9}),)
        )

        async def answer(msg: Any) -> None:
            await agent.bus.respond(msg, codec.encode(found))

        await agent.bus.serve(subjects.rpc(SITE, "partitions"), answer)
        await agent.chunk(key, Stream.STDOUT, 0, b"epoch 1\n")
        await asyncio.to_thread(look, key)

    def look(key: str) -> None:
        with terminal(own) as screen:
            screen.wait_for(r"newest +RUNNING")
            screen.press(b"\n")
            screen.wait_for(rf"newest[\s\S]*{key}[\s\S]*output[\s\S]*epoch 1")
            screen.press(b"\x1b")
            screen.wait_for(r"jobs 1 to 1 of 1")
            screen.press(b"p")
            screen.wait_for(r"scripted +boost +UP +12 +96 +9 idle")
            screen.press(b"\x1b")
            screen.wait_for(r"jobs 1 to 1 of 1")
            assert screen.end() == 0

    with bus_site(tmp_path) as own:
        own.play(played)


async def alarm(agent: ScriptedAgent) -> None:
    await beat(agent, alarms=("the bus takes no more LOGS",))


def test_a_small_terminal_shows_what_counts(site: BusSite) -> None:
    with terminal(site, columns=70, lines=20) as screen:
        screen.wait_for(r"SITE\s+HEARTBEAT\s+AGE")
        screen.wait_for(r"scripted\s+serves")
        screen.wait_for(r"job-39\s+PENDING")
        assert screen.end() == 0


def run(site: BusSite, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SLURMBUS_HOME": str(site.home.path), "COLUMNS": "140"}
    return subprocess.run(
        [*PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_in_a_pipe_it_is_one_frame(site: BusSite) -> None:
    done = run(site)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert f"{JOBS} pending" in done.stdout
    assert re.search(r"scripted\s+login01\s+serves", done.stdout)
    assert f"jobs 1 to 20 of {JOBS}" in done.stdout


def test_json_has_all_of_it(site: BusSite) -> None:
    done = run(site, "--json", "--site", SITE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (one,) = found["sites"]
    assert one["site"] == SITE
    assert one["jobs"] == {"PENDING": JOBS}
    assert [(agent["condition"], agent["leader"]) for agent in one["agents"]] == [("alive", True)]
    assert one["agents"][0]["heartbeat"]["vitals"]["budgets"][0]["name"] == "cpu-time"
    assert len(found["jobs"]) == JOBS
    assert found["buses"][0]["reachable"]


def test_a_site_that_isnt_there_is_told(site: BusSite) -> None:
    done = run(site, "--once", "--site", "nowhere")
    assert done.returncode != 0
    assert "no bus knows a site 'nowhere'; known are other, scripted" in done.stderr
