"""What a running or waiting job tells beside its state: live use, facts, and when it may start."""

from __future__ import annotations

import msgspec
import pytest

from slurmbus_agent import events, lifecycle
from slurmbus_agent.runner.claims import AGENT_NODE
from slurmbus_agent.scheduler.base import Observation
from slurmbus_protocol.messages import Live, Record, Start
from slurmbus_protocol.states import JobState

KEY = "01JD0000000000000000000000"
HOUR = 3600.0


def live(at: float) -> Live:
    return Live(at=at, node="c1", cpus=2, cpu_seconds=1.0, cpu_percent=50.0, rss=10, peak_rss=20, processes=1)


def start(number: int = 0, node: str = "c1") -> Start:
    return Start(number=number, job_id=7, node=node, nonce="n", started_at=2.0)


def record(state: JobState = JobState.RUNNING, *starts: Start, **fields: object) -> Record:
    return msgspec.convert(
        {
            "key": KEY,
            "site": "a",
            "epoch": 1,
            "name": "job",
            "submitter": "me",
            "created_at": 1.0,
            "updated_at": 1.0,
            "state": state.value,
            "job_id": 7,
            "submits": 1,
            "starts": [msgspec.to_builtins(one) for one in starts],
        }
        | fields,
        Record,
    )


def ended(**fields: object) -> events.Ended:
    return events.Ended(start=0, exit_code=0, signal=None, error=None, usage=None, ended_at=3.0, **fields)  # type: ignore[arg-type]


def test_live_use_is_kept_and_an_older_one_changes_nothing() -> None:
    running = record(JobState.RUNNING, start())
    first, told = lifecycle.advance(running, events.LiveSeen(start=0, live=live(10.0)))
    assert (first.starts[0].live, told) == (live(10.0), ())
    for late in (live(10.0), live(9.0)):
        again, _ = lifecycle.advance(first, events.LiveSeen(start=0, live=late))
        assert again is first
    assert lifecycle.advance(first, events.LiveSeen(start=5, live=live(20.0)))[0] is first


def test_facts_are_kept_and_told_once() -> None:
    running = record(JobState.RUNNING, start())
    found = events.FactsFound(start=0, facts={"dashboard": "http://c1"})
    first, told = lifecycle.advance(running, found)
    assert (first.starts[0].facts, told) == ({"dashboard": "http://c1"}, ())
    assert lifecycle.advance(first, found)[0] is first
    more, _ = lifecycle.advance(first, events.FactsFound(start=0, facts={"dashboard": "http://c1", "workers": "2"}))
    assert more.starts[0].facts["workers"] == "2"


def test_the_end_brings_the_last_of_both_and_a_runner_of_old_keeps_what_is_there() -> None:
    running = record(JobState.RUNNING, start())
    running, _ = lifecycle.advance(running, events.LiveSeen(start=0, live=live(10.0)))
    running, _ = lifecycle.advance(running, events.FactsFound(start=0, facts={"a": "1"}))
    over, _ = lifecycle.advance(running, ended(live=live(20.0), facts={"a": "2"}))
    assert (over.starts[0].live, over.starts[0].facts) == (live(20.0), {"a": "2"})
    for late in (events.LiveSeen(start=0, live=live(30.0)), events.FactsFound(start=0, facts={"a": "3"})):
        assert lifecycle.advance(over, late)[0] is over
    old, _ = lifecycle.advance(running, ended())
    assert (old.starts[0].live, old.starts[0].facts) == (live(10.0), {"a": "1"})


def test_the_agents_own_claim_has_neither() -> None:
    sealed = record(JobState.COMPLETING, start(0, node=AGENT_NODE), verdict="FAILED")
    assert lifecycle.advance(sealed, events.FactsFound(start=3, facts={"a": "1"}))[0] is sealed


def seen(estimate: float | None, state: str = "PENDING") -> events.Observed:
    return events.Observed(
        observation=Observation(job_id=7, name="x", state=state, submit_time=1000.0, start_estimate=estimate)
    )


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (None, 5000.0, 5000.0),
        (5000.0, None, None),
        (5000.0, 5100.0, 5000.0),
        (5000.0, 6000.0, 6000.0),
        (1000.0 + 10 * HOUR, 1000.0 + 11 * HOUR, 1000.0 + 10 * HOUR),
        (1000.0 + 10 * HOUR, 1000.0 + 13 * HOUR, 1000.0 + 13 * HOUR),
        (1000.0 + 10 * HOUR, 1000.0 + 5 * HOUR, 1000.0 + 5 * HOUR),
    ],
)
def test_an_expected_start_that_moves_little_is_no_news(
    old: float | None, new: float | None, kept: float | None
) -> None:
    pending = record(JobState.PENDING, estimated_start=old)
    assert lifecycle.advance(pending, seen(new))[0].estimated_start == kept


def test_a_job_that_runs_expects_nothing() -> None:
    pending = record(JobState.PENDING, estimated_start=5000.0)
    assert lifecycle.advance(pending, events.Claimed(starts=(start(),)))[0].estimated_start is None
    assert lifecycle.advance(pending, seen(None, "RUNNING"))[0].estimated_start is None
