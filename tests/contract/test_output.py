"""Output without end through a real agent: what arrives, what the agent costs, and what other jobs notice."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import RealAgent, agent_site
from contract.bus_site import BusSite, wait_until
from slurmbus.events import Event, Gap, Output
from slurmbus_agent import budgets
from slurmbus_protocol.messages import CommandPlan, JobSpec
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

MIB = 1024 * 1024
GROWTH = 20 * MIB
LINE = 100
BLOCK = 10_000 * LINE
LIMIT = 3_000_050
FLOOD = """
import os, sys, time
line = b"%0{digits}d\\n"
begun = time.monotonic()
for block in range({blocks}):
    os.write(1, b"".join(map(line.__mod__, range(block * 10_000, (block + 1) * 10_000))))
print(time.monotonic() - begun, file=sys.stderr)
while not os.path.exists({release!r}):
    time.sleep(0.05)
print("the end")
"""
TICKS = """\
import sys, time
for _ in range(3000):
    sys.stdout.write(f"{time.time()}\\n")  # in one piece, also where Python doesn't buffer
    sys.stdout.flush()
    time.sleep(0.1)
"""

Running = tuple[BusSite, RealAgent]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with agent_site(tmp_path) as running:
        yield running


def python(script: str, **fields: object) -> JobSpec:
    return JobSpec(name="output", plan=CommandPlan(argv=(sys.executable, "-c", script)), **fields)  # type: ignore[arg-type]


def flood(release: Path, megabytes: int) -> JobSpec:
    return python(
        FLOOD.format(digits=LINE - 1, blocks=megabytes * 1_000_000 // BLOCK, release=str(release)), stream_limit=LIMIT
    )


def memory(agent: RealAgent, kind: str) -> int:
    """Give the agent's memory in bytes: ``VmRSS`` now, ``VmHWM`` the most that it ever was."""
    assert agent.process is not None
    for line in Path(f"/proc/{agent.process.pid}/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise AssertionError(kind)


def run(site: BusSite, spec: JobSpec) -> list[Event]:
    with site.client.follow(site.client.submit(spec)) as events:
        return list(events)


def written(folder: Path, key: str) -> int:
    path = folder / "spool" / "jobs" / f"{key}.0" / "0.stdout"
    return path.stat().st_size if path.exists() else 0


def ended(folder: Path, key: str) -> bool:
    path = folder / "spool" / "jobs" / f"{key}.0" / "0.report"
    return path.exists() and json.loads(path.read_text())["end"] is not None


def check(events: list[Event], spool: Path, key: str) -> None:
    """The first bytes without a hole, then marked gaps and whole lines at their places, then the end."""
    whole = spool / "spool" / "jobs" / f"{key}.0" / "0.stdout"
    size = whole.stat().st_size
    pieces = [event for event in events if isinstance(event, Output | Gap) and event.stream is Stream.STDOUT]
    head = 0
    with whole.open("rb") as file:
        for piece in pieces:
            assert piece.offset == head, "one follows the other"
            if isinstance(piece, Gap):
                assert piece.over_limit
                assert piece.path == str(whole)
                assert piece.offset >= LIMIT
                head += piece.length
            else:
                file.seek(piece.offset)
                assert file.read(len(piece.data)) == piece.data
                head += len(piece.data)
                if head > LIMIT and piece.offset > LIMIT:
                    assert piece.offset % LINE == 0, "a whole line"
    assert head == size
    assert any(isinstance(piece, Gap) for piece in pieces)
    last = pieces[-1]
    assert isinstance(last, Output)
    assert last.data.endswith(b"the end\n")
    shown = sum(len(piece.data) for piece in pieces if isinstance(piece, Output))
    assert shown <= LIMIT + budgets.LAST_BYTES + size // budgets.SAMPLE_BYTES


def test_a_gigabyte_grows_the_agent_little_and_other_jobs_go_on(running: Running, tmp_path: Path) -> None:
    """Nobody reads the flood; a line that another job writes after it began arrives while it is still there."""
    site, agent = running
    run(site, python("print('warm')"))
    before = memory(agent, "VmRSS")
    release = tmp_path / "release"
    ticking = site.client.submit(python(TICKS))
    latencies = []
    with site.client.follow(ticking) as ticks:
        next(event for event in ticks if isinstance(event, Output))
        begun = time.time()
        key = site.client.submit(flood(release, 1000))
        for event in ticks:
            if isinstance(event, Output) and event.stream is Stream.STDOUT:
                written_at = float(event.data.split()[-1])
                latencies.append(time.time() - written_at)
                if written_at > begun and written(tmp_path, key) >= 1_000_000_000:
                    break
        assert not ended(tmp_path, key)
    growth = memory(agent, "VmHWM") - before
    assert growth <= GROWTH, f"{growth / MIB:.1f} MiB"
    release.touch()
    with site.client.follow(key) as events:
        check(list(events), tmp_path, key)
    site.client.cancel(ticking)
    wait_until(lambda: (record := site.client.record(ticking)) and record.state.is_final, "the end of the other job")
    print(f"1 GB: the agent grew by {growth / MIB:.1f} MiB; lines of another job took at most {max(latencies):.2f} s")


def test_a_frozen_bus_disturbs_no_job_and_grows_the_agent_little(running: Running, tmp_path: Path) -> None:
    """16 jobs write 1 GB in all and end while the server is stopped; afterwards everything arrives."""
    site, agent = running
    run(site, python("print('warm')"))
    before = memory(agent, "VmRSS")
    release = tmp_path / "release"
    keys = [site.client.submit(flood(release, 64)) for _ in range(16)]
    wait_until(lambda: all(written(tmp_path, key) for key in keys), "the jobs' first bytes")
    server = site.owner.server.pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        release.touch()
        wait_until(lambda: all(ended(tmp_path, key) for key in keys), "the end of all jobs, without a bus", 120)
        growth = memory(agent, "VmHWM") - before
    finally:
        os.kill(server, signal.SIGCONT)
    for key in keys:
        with site.client.follow(key) as events:
            seen = list(events)
        check(seen, tmp_path, key)
        record = site.client.record(key)
        assert record is not None
        assert record.state is JobState.COMPLETED
        assert record.starts[-1].sizes is not None
        assert record.starts[-1].sizes[Stream.STDOUT] == written(tmp_path, key)
    growth = max(growth, memory(agent, "VmHWM") - before)
    assert growth <= GROWTH, f"{growth / MIB:.1f} MiB"
    print(f"1 GB and no bus: the agent grew by {growth / MIB:.1f} MiB")


def test_an_agent_that_is_killed_goes_on_beyond_the_limit(running: Running, tmp_path: Path) -> None:
    site, agent = running
    release = tmp_path / "release"
    key = site.client.submit(flood(release, 20))
    with site.client.follow(key) as events:
        seen = []
        for event in events:
            seen.append(event)
            if isinstance(event, Gap):
                break
        assert agent.process is not None
        agent.process.kill()
        agent.process.wait()
        release.touch()
        wait_until(lambda: ended(tmp_path, key), "the end of the job, without an agent")
        agent.start()
        seen.extend(events)
    check(seen, tmp_path, key)
