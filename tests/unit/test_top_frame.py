"""A frame of ``slurmbus top``: what it shows of many sites, and how heartbeats are drawn."""

from __future__ import annotations

import io
import time

import msgspec
import pytest
from rich.console import Console

from slurmbus.commands.keyboard import _KEY, _NAMES
from slurmbus.commands.top_frame import BEATS, Frame, bars, heartbeat_line, milliseconds, size
from slurmbus.commands.top_job import JobFrame
from slurmbus.picture import AgentName, JobName, Picture
from slurmbus.testing import ended_start
from slurmbus.timeline import steps_of
from slurmbus_protocol.messages import SchedulerHealth
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid
from unit.test_metrics import beat, job


def drawn(picture: Picture, width: int = 150, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as capture:
        console.print(Frame(picture, live=True))
    return capture.get().splitlines()


def test_many_sites_leave_room_for_jobs_and_those_that_are_ill_come_first() -> None:
    picture, now = Picture(), time.time()
    for number in range(50):
        ill = SchedulerHealth(kind="native", responding=False, since=now)
        changes = {"site": f"site{number:02}", "scheduler": ill} if number == 49 else {"site": f"site{number:02}"}
        picture.take_heartbeat("bus", msgspec.structs.replace(beat(), **changes), now, lease=True)
    for number in range(100):
        record = msgspec.structs.replace(job(1, JobState.RUNNING, job_id=number), key=new_ulid(), site="site00")
        picture.take_record("bus", record)
    lines = drawn(picture)
    assert len(lines) <= 40
    (first, *_) = [line for line in lines if line.startswith("site")]
    assert first.startswith("site49")
    assert "no answer" in first
    assert "and 30 more agents" in [line.strip() for line in lines]
    assert any(line.startswith("jobs 1 to ") for line in lines)
    assert sum("RUNNING" in line for line in lines) >= 3


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_it_fits_every_width(width: int) -> None:
    picture = Picture()
    picture.take_heartbeat("bus", beat(), time.time(), lease=True)
    picture.take_record("bus", job(1, JobState.FAILED, reason="NonZeroExitCode" * 5))
    lines = drawn(picture, width)
    assert all(len(line) <= width for line in lines)
    assert any("alice" in line and "serves" in line for line in lines)
    assert any("FAILED" in line for line in lines)


def test_a_missing_heartbeat_is_a_gap() -> None:
    picture, now = Picture(), time.time()
    for number in range(BEATS, 0, -1):
        if number not in {3, 4, 5}:
            picture.take_heartbeat("bus", beat(), now - 2.0 * number + 0.5, lease=True)
    line = heartbeat_line(picture.agents[AgentName("alice", "login-1")], now)
    assert len(line) == 2 * BEATS
    assert line.rstrip() == line
    pulses = [mark for mark in line if mark not in " ▁"]
    assert len(pulses) == BEATS - 3
    assert "   " in line, line


def test_a_slow_bus_is_drawn_higher() -> None:
    heights = []
    for latency in (None, 0.0001, 0.01, 0.1, 10.0):
        picture, now = Picture(), time.time()
        vitals = msgspec.structs.replace(beat().vitals, bus_latency=latency)
        picture.take_heartbeat("bus", beat(vitals=vitals), now - 0.1, lease=True)
        heights.append(heartbeat_line(picture.agents[AgentName("alice", "login-1")], now)[-1])
    assert heights == ["▂", "▂", "▅", "▇", "█"]


def test_the_last_hour_is_drawn() -> None:
    picture, now = Picture(), time.time()
    for number in range(8):
        record = job(1, JobState.RUNNING, job_id=number)
        began = now - 60 - 400 * number
        changes = {"key": new_ulid(), "created_at": began - 50, "start_time": began, "starts": ()}
        picture.take_record("bus", msgspec.structs.replace(record, **changes))
    (line,) = [line for line in drawn(picture) if line.startswith("last hour")]
    marks = line.partition("running ")[2].partition("waiting")[0].strip()
    assert marks[0] == "▂"
    assert marks[-1] == "█"
    assert "".join(sorted(marks, key=marks.index)) == marks
    assert bars([0, 1, 4, 8]) == " ▂▅█"


def test_a_job_with_its_way_and_the_end_of_its_output() -> None:
    picture, now = Picture(), time.time()
    record = msgspec.structs.replace(
        job(1, JobState.RUNNING),
        name="train",
        created_at=now - 100,
        timings={"requested": now - 101, "accepted": now - 100, "staged": now - 99, "submitted": now - 98},
        starts=(msgspec.structs.replace(ended_start(), started_at=now - 60, ended_at=None, node="c7"),),
    )
    picture.take_record("bus", record)
    frame = JobFrame(picture, JobName(record.site, record.key, record.task))
    frame.take(Stream.STDOUT, "".join(f"line {number}\n" for number in range(1000)))
    frame.take(Stream.STDOUT, "half\rwhole\n\x1b[2Jnext")
    console = Console(file=io.StringIO(), width=100, height=20)
    with console.capture() as capture:
        console.print(frame)
    lines = capture.get().splitlines()
    assert len(lines) <= 20
    assert "train" in lines[0]
    assert any(line.startswith("in the queue") and "38.0 s" in line for line in lines)
    assert any(line.startswith("ran on c7") for line in lines)
    assert [line.strip() for line in lines[-3:]] == ["line 999", "whole", "[2Jnext"]
    assert [step.what for step in steps_of(record)][:3] == ["request on its way", "staged", "submitted to Slurm"]


def test_short_numbers() -> None:
    assert [size(number) for number in (0, 999, 1000, 42_000_000, 5_000_000_000)] == ["0B", "999B", "1K", "40M", "4.7G"]
    assert [milliseconds(seconds) for seconds in (None, 0.0021, 0.25)] == ["", "2.1 ms", "0.25 s"]


def test_keys_that_come_together_are_told_apart() -> None:
    pressed = [_NAMES.get(key, key.decode()) for key in _KEY.findall(b"\x1b[A\x1b[Bq\x1bOA\x1b[5~j\x1b")]
    assert pressed == ["up", "down", "q", "up", "page up", "j", "escape"]
