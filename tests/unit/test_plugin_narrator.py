"""The run's event log: each state once, and why nothing happens."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dagster_slurmbus.narrator import Narrator, clock
from slurmbus.events import AgentStatus, Gap, Waiting
from slurmbus_protocol.messages import Heartbeat, Record, SchedulerHealth, Start
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

KEY = "01JD0000000000000000000000"
SILENCE = f"nothing was heard since {clock(1000.0)}"


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.narrator = Narrator(
            "alpha", KEY, info=self.lines.append, warning=lambda text: self.lines.append("! " + text)
        )

    def tell(self, state: JobState, **fields: Any) -> None:
        self.narrator.state(
            Record(
                key=KEY,
                site="alpha",
                epoch=1,
                state=state,
                name="x",
                submitter="me",
                created_at=1.0,
                updated_at=time.time(),
                scheduler="native",
                **fields,
            )
        )


@pytest.fixture
def log() -> Log:
    return Log()


def start(number: int) -> Start:
    return Start(number=number, job_id=17, node="c1", nonce="n")


def test_a_jobs_life_in_lines(log: Log) -> None:
    log.tell(JobState.ACCEPTED)
    log.tell(JobState.STAGING)
    log.tell(JobState.PENDING, job_id=17)
    log.tell(JobState.PENDING, job_id=17, reason="Priority")
    log.tell(JobState.PENDING, job_id=17, reason="Priority")
    log.tell(JobState.PENDING, job_id=17, reason="Resources")
    log.tell(JobState.RUNNING, job_id=17, node_list="c1", starts=(start(0),))
    log.tell(JobState.RUNNING, job_id=17, node_list="c1", starts=(start(0),), slurm_state="SUSPENDED")
    log.tell(JobState.RUNNING, job_id=17, node_list="c1", starts=(start(0),), slurm_state="RUNNING")
    log.tell(JobState.PENDING, job_id=17, reason="BeginTime", starts=(start(0),))
    log.tell(JobState.RUNNING, job_id=17, node_list="c2", starts=(start(0), start(1)))
    log.tell(JobState.COMPLETED, job_id=17, node_list="c2", starts=(start(0), start(1)))
    assert log.lines == [
        f"job {KEY} is ACCEPTED by the agent of site alpha",
        f"job {KEY} is STAGING",
        "Slurm job 17 is PENDING",
        "Slurm job 17 is PENDING (Priority)",
        "Slurm job 17 is PENDING (Resources)",
        "Slurm job 17 is RUNNING on c1",
        "Slurm job 17 is RUNNING (Slurm says SUSPENDED) on c1",
        "Slurm job 17 is RUNNING on c1",
        "Slurm job 17 is PENDING (BeginTime)",
        "Slurm job 17 is RUNNING on c2, start 2",
        "Slurm job 17 is COMPLETED on c2",
    ]


def status(*, age: float = 1.0, responding: bool = True) -> AgentStatus:
    health = SchedulerHealth(kind="native", responding=responding, since=500.0)
    heartbeat = Heartbeat(
        site="alpha",
        agent_id="a",
        epoch=1,
        leader=True,
        interval=10.0,
        lease_seconds=30.0,
        host="login",
        user="alice",
        pid=1,
        version="0.1.0",
        protocol=(1, 1),
        capabilities=(),
        started_at=1.0,
        sent_at=1.0,
        scheduler=health,
    )
    return AgentStatus(heartbeat, age)


@pytest.mark.parametrize(
    ("agent", "reachable", "words"),
    [
        (None, False, f"! waiting: the bus doesn't answer, {SILENCE}; the job isn't affected"),
        (None, True, f"! waiting: no agent answers for site alpha, {SILENCE}; log in to the cluster and start it"),
        (status(age=31.0), True, "! waiting: no agent answers for site alpha, the last one was heard at "),
        (
            status(responding=False),
            True,
            f"! waiting: Slurm's controller doesn't answer the agent of site alpha since {clock(500.0)}",
        ),
        (status(), True, f"! waiting: the agent of site alpha hasn't taken the job yet, {SILENCE}"),
    ],
)
def test_why_nothing_happens(log: Log, agent: AgentStatus | None, reachable: bool, words: str) -> None:
    log.narrator.waiting(Waiting(1000.0, None, agent, reachable))
    assert len(log.lines) == 1
    assert log.lines[0].startswith(words)


def test_a_quiet_job_is_nobodys_business(log: Log) -> None:
    log.tell(JobState.RUNNING, job_id=17)
    log.lines.clear()
    running = Record(
        key=KEY,
        site="alpha",
        epoch=1,
        state=JobState.RUNNING,
        name="x",
        submitter="me",
        created_at=1.0,
        updated_at=1.0,
    )
    log.narrator.waiting(Waiting(1000.0, running, status(), bus_reachable=True))
    assert log.lines == []


def test_missing_output_is_said(log: Log) -> None:
    log.narrator.gap(Gap(0, Stream.STDOUT, 1000, 5000, "evicted"))
    assert log.lines == ["! 5,000 bytes of stdout are missing after byte 1,000: evicted"]


def test_a_twin_is_told_once(log: Log) -> None:
    log.tell(JobState.RUNNING, job_id=17, node_list="c1", starts=(start(0),))
    log.tell(JobState.RUNNING, job_id=17, node_list="c1", starts=(start(0),), twins=(18,))
    log.tell(JobState.COMPLETED, job_id=17, node_list="c1", starts=(start(0),), twins=(18,))
    assert log.lines[1] == "! Slurm job 18 is a twin of Slurm job 17: it ends without running anything"
    assert len([line for line in log.lines if "twin" in line]) == 1
