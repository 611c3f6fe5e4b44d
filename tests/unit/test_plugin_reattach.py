"""Deciding what becomes of an earlier attempt's job, and keeping what a run shows already."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster._core.pipes.reattach import PipesLaunchHandle

from dagster_slurmbus import ComputeResource, OnChangedRequest, PipesSlurmClient
from dagster_slurmbus._compat import FoundLaunch
from dagster_slurmbus.forwarding import Forwarder
from dagster_slurmbus.reattach import Choice, Found, Launches, choose, request_hash
from dagster_slurmbus.shown import Doubt, Shown
from slurmbus.events import Gap, Output
from slurmbus_protocol.messages import CancelAsked, Record, Start
from slurmbus_protocol.states import FINAL, JobState
from slurmbus_protocol.subjects import Stream, new_ulid

RESUBMIT, REATTACH, FAIL = OnChangedRequest


def record(state: JobState, **fields: Any) -> Record:
    base = {"epoch": 1, "name": "x", "submitter": "me", "created_at": 0.0, "updated_at": 0.0}
    return Record(key=new_ulid(), site="here", state=state, **base, **fields)


def told_to_end(state: JobState) -> Record:
    return record(state, cancel=CancelAsked(id=new_ulid(), at=0.0, submitter="me"))


# ------------------------------------------------------------------ the decision


@pytest.mark.parametrize(("same", "on_changed"), list(itertools.product([True, False], OnChangedRequest)))
def test_every_case_of_the_decision(*, same: bool, on_changed: OnChangedRequest) -> None:
    changed = {RESUBMIT: Choice.REPLACE, REATTACH: Choice.FOLLOW, FAIL: Choice.REFUSE}[on_changed]

    def chosen(found: Record | None) -> Choice:
        return choose(found, same=same, on_changed=on_changed)

    for state in set(JobState) - FINAL:
        assert chosen(record(state)) is (Choice.FOLLOW if same else changed)
        assert chosen(told_to_end(state)) is Choice.REPLACE
    for state in FINAL - {JobState.COMPLETED}:
        assert chosen(record(state)) is Choice.SUBMIT
        assert chosen(told_to_end(state)) is Choice.SUBMIT
    failed = (Start(number=0, job_id=1, node="a", nonce="b", exit_code=1),)
    assert chosen(record(JobState.COMPLETED, starts=failed)) is Choice.SUBMIT
    completed = Choice.SUBMIT if on_changed is RESUBMIT else changed
    assert chosen(record(JobState.COMPLETED)) is (Choice.FOLLOW if same else completed)
    unknown = Choice.REPEAT if on_changed is REATTACH else changed
    assert chosen(None) is (Choice.REPEAT if same else unknown)


def test_the_setting_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="on_changed_request='ask': use resubmit, reattach, fail"):
        PipesSlurmClient(site="x", on_changed_request="ask")
    with pytest.raises(ValueError, match="use resubmit, reattach, fail"):
        ComputeResource(on_changed_request="ask")
    assert ComputeResource(on_changed_request="fail").pipes_client().conduct.on_changed_request is FAIL


# ------------------------------------------------------------------ which launch is whose


def launched(client: str, parts: dict[str, str], site: str = "here") -> Found:
    handle = PipesLaunchHandle(
        client_name=client, external_run_id=new_ulid(), step_key="x", retry_number=0, launched_at=0.0
    )
    return Found(FoundLaunch("run", handle), site, request_hash(parts), parts)


def test_a_launch_is_found_by_call_and_request_then_by_request_then_by_call() -> None:
    a, b, c = ({"command": name, "partition": "p"} for name in "abc")
    launches = [launched("slurmbus:0", a), launched("slurmbus:1", b), launched("slurmbus:2", a)]
    left = Launches(launches)
    assert left.take("slurmbus:2", "here", a) is launches[2]
    assert left.take("slurmbus:0", "here", b) is launches[1]
    assert left.take("slurmbus:1", "here", a) is launches[0]
    assert not left
    left = Launches(launches)
    assert left.take("slurmbus:1", "here", c) is launches[1]
    assert left.take("slurmbus:5", "here", c) is None
    assert left.take("slurmbus:0", "elsewhere", a) is launches[0]


def test_a_launch_for_another_partition_is_never_found() -> None:
    left = Launches([launched("slurmbus:0", {"command": "a", "partition": "p"})])
    assert left.take("slurmbus:0", "here", {"command": "a", "partition": "q"}) is None
    assert left


def test_a_name_of_ones_own_finds_its_own_launch_only() -> None:
    parts = {"command": "a", "partition": "p"}
    launches = [launched("slurmbus:0", parts), launched("slurmbus:key:x", parts)]
    left = Launches(launches)
    assert left.take("slurmbus:key:y", "here", parts) is None
    assert left.take("slurmbus:key:x", "here", parts) is launches[1]
    assert left.take("slurmbus:1", "here", parts) is launches[0]


def test_the_changed_parts_are_named() -> None:
    found = launched("slurmbus:0", {"command": "a", "files": "1", "resources": "r"})
    assert found.changes("here", {"command": "a", "files": "2", "resources": "r"}) == "files"
    assert found.changes("there", {"command": "b", "resources": "r", "extras": "e"}) == "site, command, files, extras"


# ------------------------------------------------------------------ what a run shows already


def test_what_was_shown_is_known_to_the_next_attempt(tmp_path: Path) -> None:
    path = tmp_path / "slurmbus" / "shown" / "key"
    shown = Shown(path)
    shown.end(0, Stream.STDOUT, 10)
    shown.begin(0, Stream.STDERR, 7, 100)
    shown.end(2, Stream.MESSAGES, 5)
    shown.begin(2, Stream.MESSAGES, 9)
    shown.close()
    again = Shown(path)
    assert (again.until(0, Stream.STDOUT), again.doubt(0, Stream.STDOUT)) == (10, None)
    assert (again.until(0, Stream.STDERR), again.doubt(0, Stream.STDERR)) == (0, Doubt(7, 100))
    assert (again.until(2, Stream.MESSAGES), again.doubt(2, Stream.MESSAGES)) == (5, Doubt(9, 0))
    assert (again.until(1, Stream.STDOUT), again.doubt(5, Stream.STDOUT)) == (0, None)
    again.end(0, Stream.STDERR, 3)
    assert again.doubt(0, Stream.STDERR) == Doubt(7, 103)
    again.close()


def test_a_place_that_cannot_be_written_only_means_that_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    shown = Shown(tmp_path / "file" / "key")
    shown.end(0, Stream.STDOUT, 10)
    assert shown.until(0, Stream.STDOUT) == 10
    assert "a later attempt shows it again" in caplog.text


class Log:
    """A captured log: what a step's stdout goes to."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.file = path.open("a+")
        monkeypatch.setattr(sys, "stdout", self.file)

    def forwarder(self, shown: Shown) -> Forwarder:
        return Forwarder(shown, lambda _, at, length: [b"", self.path.read_bytes()[at : at + length]])


@pytest.mark.parametrize("written", range(7))
@pytest.mark.parametrize("pieces", [(b"hello\n", b"world\n"), (b"he", b"llo\nworl", b"d\n"), (b"hello\nworld\n",)])
def test_an_attempt_that_died_while_it_wrote_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, pieces: tuple[bytes, ...]
) -> None:
    log = Log(tmp_path / "out", monkeypatch)
    with log.file:
        log.file.write("before\n")
        log.file.flush()
        shown = Shown(tmp_path / "shown")
        shown.begin(0, Stream.STDOUT, 6, 7)  # and then it writes as much, and is killed
        log.file.write("hello\n"[:written])
        log.file.flush()
        shown.close()
        forwarder = log.forwarder(Shown(tmp_path / "shown"))
        offset = 0
        for piece in pieces:
            forwarder.output(Output(0, Stream.STDOUT, offset, piece))
            offset += len(piece)
        assert log.path.read_bytes() == b"before\nhello\nworld\n"


def test_what_others_wrote_meanwhile_is_not_taken_for_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "out", monkeypatch)
    with log.file:
        shown = Shown(tmp_path / "shown")
        shown.begin(0, Stream.STDOUT, 6, 0)
        log.file.write("help\n")
        log.file.flush()
        log.forwarder(Shown(tmp_path / "shown")).output(Output(0, Stream.STDOUT, 0, b"world\n"))
        assert log.path.read_bytes() == b"help\nworld\n"


def test_a_gap_is_marked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "out", monkeypatch)
    gap = Gap(0, Stream.STDOUT, 3, 1000, "over the limit", over_limit=True)
    with log.file:
        for _ in range(2):
            forwarder = log.forwarder(Shown(tmp_path / "shown"))
            forwarder.output(Output(0, Stream.STDOUT, 0, b"one"))
            if not forwarder.is_shown(gap):
                forwarder.gap(gap)
            forwarder.output(Output(0, Stream.STDOUT, 1003, b"two\n"))
        assert log.path.read_bytes() == b"one\n[slurmbus: 1,000 bytes are left out here]\ntwo\n"
