"""The picture and the history without a bus."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from slurmbus import picture
from slurmbus.attention import attention
from slurmbus.history import over_time
from slurmbus.picture import AgentName, BusName, BusView, JobName, Picture
from slurmbus_protocol.messages import Heartbeat, Record, SchedulerHealth
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid

NOW = 1_000_000.0
BEAT = Heartbeat(
    site="leonardo",
    agent_id="login1-aa",
    epoch=1,
    leader=True,
    interval=2.0,
    lease_seconds=6.0,
    host="login1",
    user="alice",
    pid=1,
    version="0.1.0",
    protocol=(1, 1),
    capabilities=(),
    started_at=NOW,
    sent_at=NOW,
    scheduler=SchedulerHealth(kind="native", responding=True, since=NOW),
)


def record(state: JobState, **changes: Any) -> Record:
    return Record(
        key=changes.pop("key", new_ulid()),
        site="leonardo",
        epoch=1,
        state=state,
        name="train",
        submitter="alice@laptop",
        created_at=changes.pop("created_at", NOW),
        updated_at=changes.pop("updated_at", NOW),
        **changes,
    )


def beat(**changes: Any) -> Heartbeat:
    return msgspec.structs.replace(BEAT, **changes)


def test_another_leader_makes_the_former_one_a_standby() -> None:
    seen = Picture()
    seen.take_heartbeat("bus", BEAT, NOW, lease=True)
    seen.take_heartbeat("bus", beat(agent_id="login2-bb", leader=False), NOW + 1, lease=False)
    changed = seen.take_heartbeat("bus", beat(agent_id="login2-bb", epoch=2), NOW + 9, lease=True)
    assert set(changed) == {AgentName("leonardo", "login1-aa"), AgentName("leonardo", "login2-bb")}
    assert [agent.leader for agent in seen.agents_of("leonardo")] == [True, False]
    leader = seen.leader_of("leonardo")
    assert leader is not None
    assert leader.name.agent_id == "login2-bb"


def test_what_an_agent_said_as_a_standby_doesnt_stand_above_what_it_said_since() -> None:
    seen = Picture()
    seen.take_heartbeat("bus", BEAT, NOW + 5, lease=True)
    assert seen.take_heartbeat("bus", beat(leader=False), NOW, lease=False) == []
    assert seen.agents_of("leonardo")[0].leader


@pytest.mark.parametrize(
    ("age", "released", "condition"),
    [
        (0.0, False, "alive"),
        (3.9, False, "alive"),
        (5.0, False, "late"),
        (7.0, False, "silent"),
        (7.0, True, "stopped"),
    ],
)
def test_the_condition_of_an_agent(age: float, released: bool, condition: str) -> None:
    seen = Picture()
    seen.take_heartbeat("bus", beat(leader=not released, released=released), NOW, lease=True)
    leader = seen.leader_of("leonardo")
    assert leader is not None
    assert leader.condition(NOW + age) == condition


def test_of_a_site_whose_agent_was_stopped_is_said_so() -> None:
    seen = Picture()
    seen.set_bus(BusView("bus", ("leonardo",), reachable=True))
    seen.take_record("bus", record(JobState.RUNNING))
    seen.take_heartbeat("bus", BEAT, NOW, lease=True)
    seen.take_heartbeat("bus", beat(leader=False, released=True), NOW + 1, lease=True)
    (item,) = attention(seen, NOW + 2)
    assert item.text == "leonardo: the agent was stopped"
    assert "1 unfinished job" in item.hint
    seen.take_heartbeat("bus", beat(agent_id="next"), NOW + 3, lease=True)
    assert [(agent.heartbeat.agent_id, agent.leader) for agent in seen.agents_of("leonardo")] == [
        ("next", True),
        (BEAT.agent_id, False),
    ]


def test_the_picture_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_JOBS", 100)
    monkeypatch.setattr(picture, "KEPT_ENDED", 10)
    seen = Picture()
    running = record(JobState.RUNNING)
    seen.take_record("bus", running)
    for number in range(300):
        seen.take_record("bus", record(JobState.COMPLETED, updated_at=NOW + number))
        seen.take_heartbeat("bus", beat(agent_id=f"login-{number}"), NOW + number, lease=True)
    assert len(seen.jobs) <= 100
    assert JobName("leonardo", running.key, 0) in seen.jobs
    assert max(job.updated_at for job in seen.jobs.values()) == NOW + 299
    assert len(seen.agents) == picture.MAX_AGENTS
    for number in range(300):
        seen.take_heartbeat("bus", BEAT, NOW + 1000 + number, lease=True)
    assert len(seen.agents_of("leonardo")[0].beats) == picture.MAX_BEATS


def test_jobs_that_end_are_seen_however_many_have_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_JOBS", 100)
    monkeypatch.setattr(picture, "KEPT_ENDED", 5)
    seen = Picture()
    for number in range(200):
        seen.take_record("bus", record(JobState.RUNNING, updated_at=NOW + number))
    for number in range(20):
        ended = record(JobState.COMPLETED, updated_at=NOW + number)
        seen.take_record("bus", ended)
        assert JobName("leonardo", ended.key, 0) in seen.jobs
    assert seen.counts() == {"RUNNING": 200, "COMPLETED": pytest.approx(5, abs=2)}


def test_nothing_changes_when_the_same_comes_again() -> None:
    seen = Picture()
    job = record(JobState.RUNNING)
    assert seen.take_record("bus", job) == [JobName("leonardo", job.key, 0)]
    assert seen.take_record("bus", job) == []
    assert seen.set_bus(BusView("bus", ("leonardo", "lumi"))) == [BusName("bus")]
    assert seen.set_bus(BusView("bus", ("leonardo", "lumi"))) == []
    assert seen.sites() == ["leonardo", "lumi"]
    assert seen.bus_of("lumi") == "bus"


def test_jobs_that_were_forgotten_go() -> None:
    seen = Picture()
    kept, gone = record(JobState.RUNNING), record(JobState.COMPLETED)
    seen.take_record("bus", kept)
    seen.take_record("bus", gone)
    assert seen.keep_jobs("bus", {JobName("leonardo", kept.key, 0)}) == [JobName("leonardo", gone.key, 0)]
    assert list(seen.jobs) == [JobName("leonardo", kept.key, 0)]


def test_agents_of_a_site_that_was_removed_go() -> None:
    seen = Picture()
    seen.take_heartbeat("bus", BEAT, NOW, lease=True)
    assert seen.keep_agents("another", set()) == []
    assert seen.keep_agents("bus", {"leonardo"}) == []
    assert seen.keep_agents("bus", {"lumi"}) == [AgentName("leonardo", BEAT.agent_id)]
    assert seen.sites() == []


def test_a_removed_site_of_which_jobs_are_left_asks_for_nothing() -> None:
    seen = Picture()
    seen.set_bus(BusView("bus", ("leonardo",), reachable=True))
    seen.take_record("bus", record(JobState.COMPLETED))
    assert seen.is_used("leonardo")
    assert [item.site for item in attention(seen, NOW)] == ["leonardo"]
    seen.set_bus(BusView("bus", (), reachable=True))
    assert not seen.is_used("leonardo")
    assert attention(seen, NOW) == []
    assert seen.sites() == ["leonardo"]


def test_jobs_over_time() -> None:
    """Begin, start and end are where the records say, and nothing of before or after the window gets in."""
    jobs = [
        record(JobState.PENDING, created_at=NOW - 30),
        record(JobState.RUNNING, created_at=NOW - 30, start_time=NOW - 20),
        record(JobState.COMPLETED, created_at=NOW - 30, start_time=NOW - 20, end_time=NOW - 10),
        record(JobState.FAILED, created_at=NOW - 900, start_time=NOW - 800, end_time=NOW - 700),
        record(JobState.TIMEOUT, created_at=NOW - 900, start_time=NOW - 800, end_time=NOW - 10),
        record(JobState.CANCELLED, created_at=NOW - 20, end_time=NOW - 10),
    ]
    found = over_time(jobs, NOW, step=10.0, buckets=5)
    assert found.end == NOW + 10
    assert found.waiting == (0, 3, 2, 1, 1)
    assert found.running == (1, 1, 3, 1, 1)
    assert found.completed == (0, 0, 0, 1, 0)
    assert found.failed == (0, 0, 0, 1, 0)
    assert found.cancelled == (0, 0, 0, 1, 0)


def test_a_scheduler_that_was_not_asked_yet_needs_no_attention() -> None:
    seen = Picture()
    seen.set_bus(BusView("bus", ("leonardo",), reachable=True))
    health = SchedulerHealth(kind="native", responding=False, asked=False, since=NOW, error="not asked yet")
    seen.take_heartbeat("bus", beat(scheduler=health), NOW, lease=True)
    assert [item.text for item in attention(seen, NOW + 1)] == []


def test_what_needs_attention() -> None:
    """The worst comes first; of a bus that is lost nothing else is said."""
    seen = Picture()
    seen.set_bus(BusView("bus", ("leonardo", "nobody"), reachable=True))
    health = SchedulerHealth(kind="native", responding=False, since=NOW - 60, error="no route to host")
    seen.take_heartbeat(
        "bus",
        beat(scheduler=health, alarms=("the quota is nearly full",), authority_expires_at=NOW + 3600),
        NOW,
        lease=True,
    )
    seen.take_record("bus", record(JobState.OUT_OF_MEMORY, end_time=NOW - 60))
    seen.take_record("bus", record(JobState.FAILED, end_time=NOW - 7200))
    items = attention(seen, NOW + 1)
    assert [(item.level.value, item.text) for item in items] == [
        ("bad", "leonardo: the native scheduler doesn't answer"),
        ("warning", "leonardo: the agent's authority expires in a day"),
        ("warning", "leonardo: the quota is nearly full"),
        ("warning", "leonardo: 1 job failed in the last hour"),
        ("note", "nobody: no agent has been heard of yet"),
    ]
    assert [item.text for item in attention(seen, NOW + 5)][1] == "leonardo: the heartbeat from login1 is late"
    assert attention(seen, NOW + 4000)[0].text == "leonardo: no heartbeat from login1"
    seen.set_bus(BusView("bus", ("leonardo", "nobody"), reachable=False, problem="no answer", since=NOW))
    assert [item.text for item in attention(seen, NOW + 7200)] == ["The bus isn't reachable: no answer"]


def test_an_authority_that_has_expired() -> None:
    seen = Picture()
    seen.take_heartbeat("bus", beat(authority_expires_at=NOW - 1), NOW, lease=True)
    seen.set_bus(BusView("bus", ("leonardo",), reachable=True))
    assert [item.text for item in attention(seen, NOW)] == ["leonardo: the agent's authority has expired"]
