"""What a request needs of an agent, and the refusal when the agent can't do it."""

from __future__ import annotations

import pytest

from slurmbus_protocol import capabilities
from slurmbus_protocol.capabilities import FIRST_OPTIONS, needed
from slurmbus_protocol.errors import AgentTooOld
from slurmbus_protocol.messages import CommandPlan, Heartbeat, JobOptions, JobSpec, SchedulerHealth


def job(**options: object) -> JobSpec:
    return JobSpec(name="job", plan=CommandPlan(argv=("true",)), options=JobOptions(**options))  # type: ignore[arg-type]


def agent(*capable: str) -> Heartbeat:
    return Heartbeat(
        site="site",
        agent_id="agent",
        epoch=1,
        leader=True,
        interval=10,
        lease_seconds=30,
        host="login",
        user="alice",
        pid=1,
        version="0.1",
        protocol=(1, 1),
        capabilities=capable,
        started_at=0,
        sent_at=0,
        scheduler=SchedulerHealth(kind="native", responding=True, since=0),
    )


def test_an_older_agent_isnt_asked_to_requeue() -> None:
    capabilities.check_requeue(agent(capabilities.REQUEUE))
    with pytest.raises(AgentTooOld, match="doesn't know 'requeue'"):
        capabilities.check_requeue(agent("submit", "cancel"))


def test_the_first_options_need_nothing() -> None:
    assert set(JobOptions.__struct_fields__) >= FIRST_OPTIONS
    assert needed(job()) == set()
    assert needed(job(partition="main", exclusive=True, requeue=True, comment="mine")) == set()
    capabilities.check(job(partition="main"), agent())


def test_a_payload_in_another_folder_needs_an_agent_that_puts_its_path_there() -> None:
    spec = JobSpec(name="job", plan=CommandPlan(argv=("python3", "/here/a.py")), cwd="/data", work_word="/here")
    with pytest.raises(AgentTooOld, match=r"doesn't know 'work-word' \(payloads that run in another folder\)"):
        capabilities.check(spec, agent("submit"))
    capabilities.check(spec, agent("submit", capabilities.WORK_WORD))
