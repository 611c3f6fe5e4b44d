"""The run's event log: each state once, and why nothing happens."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dagster_slurmbus.narrator import Narrator, clock
from slurmbus.events import AgentStatus, Gap, Waiting
from slurmbus_protocol.messages import Heartbeat, Live, Record, SchedulerHealth, Start
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

KEY = "01JD0000000000000000000000"
TURN = "it starts when it is its turn; a shorter time limit or fewer resources may let it in earlier"
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
        f"Slurm job 17 is PENDING (Priority): other jobs come first; {TURN}",
        f"Slurm job 17 is PENDING (Resources): it is the next one, and what it asks for isn't free yet; {TURN}",
        "Slurm job 17 is RUNNING on c1",
        (
            "Slurm job 17 is RUNNING (Slurm says SUSPENDED) on c1: its processes are stopped for now; they go on when "
            "it is resumed; 'scontrol resume 17' does that"
        ),
        "Slurm job 17 is RUNNING on c1",
        "Slurm job 17 is PENDING (BeginTime): it was asked to begin later, or waits a moment after a requeue",
        "Slurm job 17 is RUNNING on c2, start 2",
        "Slurm job 17 is COMPLETED on c2",
    ]


def status(*, age: float = 1.0, responding: bool = True, alarms: tuple[str, ...] = ()) -> AgentStatus:
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
        alarms=alarms,
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


def test_a_held_job_is_told_with_how_to_let_it_go_once(log: Log) -> None:
    log.tell(JobState.PENDING, job_id=17, reason="JobHeldUser")
    log.tell(JobState.PENDING, job_id=17, reason="BeginTime")
    log.tell(JobState.PENDING, job_id=17, reason="JobHeldUser")
    held = "! Slurm job 17 is PENDING (JobHeldUser): it is held, by you or in your name"
    release = "; let it go with 'scontrol release 17', or end it with 'scancel 17'"
    assert [log.lines[0], log.lines[2]] == [held + release, held]


def test_a_launch_that_failed_is_told_with_the_way_out(log: Log) -> None:
    log.tell(JobState.PENDING, job_id=17, reason="launch failed requeued held", slurm_state="PENDING REQUEUE_HOLD")
    assert log.lines == [
        (
            "! Slurm job 17 is PENDING (Slurm says PENDING REQUEUE_HOLD) (launch failed requeued held): it couldn't be "
            "launched on its nodes, was put back and is held; find out why, then let it go with 'scontrol release 17', "
            "or end it with 'scancel 17'"
        )
    ]


def test_when_a_job_may_start_is_told_when_it_changes(log: Log) -> None:
    soon, later = time.time() + 600, time.time() + 3 * 86400
    for expected in (soon, soon, later, None):
        log.tell(JobState.PENDING, job_id=17, reason="Priority", estimated_start=expected)
    assert len(log.lines) == 3
    assert log.lines[0].endswith(f"; Slurm expects it to start at {clock(soon)}")
    assert log.lines[1].endswith(f"other jobs come first; Slurm expects it to start at {clock(later)}")
    assert "-" in clock(later)  # with the date


def live(**fields: Any) -> Live:
    base = {"at": 1.0, "node": "c1", "cpus": 4, "cpu_seconds": 9.0, "cpu_percent": 87.4, "rss": 1024**3}
    return Live(**base | {"peak_rss": 1024**3, "processes": 12} | fields)


def test_live_use_and_facts_are_told_as_they_come(log: Log) -> None:
    def running(**fields: Any) -> None:
        one = Start(number=0, job_id=17, node="c1", nonce="n", **fields)
        log.tell(JobState.RUNNING, job_id=17, starts=(one,), nodes=nodes)

    nodes = 1
    running()
    running(live=live())
    running(live=live())
    running(live=live(), facts={"ray_dashboard": "http://c1:8265"})
    nodes = 2
    running(
        live=live(at=2.0, cpus=1, cpu_percent=5.0, processes=1, peak_rss=2 * 1024**3, memory_limit=4 * 1024**3),
        facts={"ray_dashboard": "http://c1:8265", "workers": "2 of 2"},
    )
    assert log.lines[1:] == [
        "Slurm job 17 uses 87 % of 4 CPUs and 1 GiB of memory, 12 processes on c1",
        "Slurm job 17: ray_dashboard: http://c1:8265",
        "Slurm job 17: workers: 2 of 2",
        (
            "Slurm job 17 uses 5 % of 1 CPU and 1 GiB of 4 GiB of memory (at most 2 GiB so far), 1 process on c1, one "
            "of its 2 nodes"
        ),
    ]


def test_alarms_of_the_agent_are_told_once(log: Log) -> None:
    for alarms in (("no room", "slow"), ("no room",), ("no room", "slow")):
        log.narrator.waiting(Waiting(1000.0, None, status(responding=False, alarms=alarms), bus_reachable=True))
    told = [line for line in log.lines if "has a problem" in line]
    assert told == [
        "! the agent of site alpha has a problem: no room",
        "! the agent of site alpha has a problem: slow",
        "! the agent of site alpha has a problem: slow",
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bus_reachable": False, "problem": "no answer"}, f"the bus doesn't answer (no answer), {SILENCE}"),
        ({"bus_reachable": True, "problem": "REQUESTS is full"}, "the bus doesn't take the request: REQUESTS is full"),
        ({"bus_reachable": True, "bus_is_new": True}, "the bus started anew, and the agent of site alpha hasn't"),
    ],
)
def test_what_is_wrong_with_the_bus(log: Log, fields: dict[str, Any], words: str) -> None:
    log.narrator.waiting(Waiting(since=1000.0, record=None, agent=status(), **fields))
    assert log.lines[0].startswith(f"! waiting: {words}")
