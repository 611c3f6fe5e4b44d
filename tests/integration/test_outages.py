"""Things that break: the controller, a node, an agent, the bus; jobs survive them or end in plain words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from integration.jobs import Story, follow, run, spec
from slurmbus.client import SiteClient
from slurmbus.events import Output, StateChanged
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import Heartbeat, JobOptions, Ping
from slurmbus_protocol.states import JobState


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def heartbeat(client: SiteClient) -> Heartbeat:
    return client.ask("info", Ping(sent_at=time.time()), Heartbeat)


@contextmanager
def frozen_controller(cluster: Cluster) -> Iterator[None]:
    cluster.daemon("freeze", "slurmctld")
    try:
        yield
    finally:
        cluster.daemon("thaw", "slurmctld")


def test_with_a_frozen_controller_heartbeats_and_output_go_on(alice: SiteClient, cluster: Cluster) -> None:
    key = alice.submit(spec("bash", "-c", "for i in $(seq 1000); do echo $i; sleep 0.2; done"))
    story, heard, thawed = Story(), 0, False
    beats: set[float] = set()
    frozen_at = 0.0
    for event in alice.follow(key):
        story.hear(event)
        if isinstance(event, StateChanged) and event.record.state is JobState.RUNNING and not frozen_at:
            cluster.daemon("freeze", "slurmctld")
            frozen_at = time.monotonic()
            late = alice.submit(spec("echo", "late"))
        if isinstance(event, Output) and frozen_at and not thawed:
            heard += 1
            status = heartbeat(alice)
            beats.add(alice.heartbeats()[0].heartbeat.sent_at)
            if time.monotonic() - frozen_at > 60:
                assert not status.scheduler.responding
                assert status.scheduler.since > 0
                cluster.daemon("thaw", "slurmctld")
                thawed = True
                alice.cancel(key)
    assert thawed
    assert heard > 150, "output was relayed while the controller was frozen"
    assert len(beats) > 15, "heartbeats went on while the controller was frozen"
    assert story.record.state is JobState.CANCELLED
    after = follow(alice, late)
    assert (after.record.state, after.stdout) == (JobState.COMPLETED, "late\n")
    until(lambda: heartbeat(alice).scheduler.responding, 60, "the agent says that the controller answers again")


def test_a_time_limit(alice: SiteClient) -> None:
    story = run(
        alice, "bash", "-c", "echo begun; sleep 600", options=JobOptions(partition="short", time_limit_minutes=1)
    )
    assert story.record.state is JobState.TIMEOUT
    assert story.stdout == "begun\n"


def test_an_agent_that_is_killed_and_started_again_goes_on_where_it_stopped(
    alice: SiteClient, alice_agent: AgentProcess
) -> None:
    key = alice.submit(spec("bash", "-c", "for i in $(seq 100); do echo $i; sleep 0.1; done"))
    story, killed = Story(), False
    for event in alice.follow(key):
        story.hear(event)
        if not killed and story.stdout.count("\n") >= 10:
            alice_agent.kill()
            alice_agent.start()
            killed = True
    assert killed
    assert story.stdout == "".join(f"{number}\n" for number in range(1, 101))
    assert story.record.state is JobState.COMPLETED
    assert story.record.submits == 1


def test_a_job_that_ends_while_no_agent_runs_is_told_rightly_afterwards(
    alice: SiteClient, alice_agent: AgentProcess, cluster: Cluster
) -> None:
    key = alice.submit(spec("bash", "-c", "echo begun; sleep 3; echo done; exit 5"))
    for event in alice.follow(key):
        if isinstance(event, Output):
            alice_agent.kill()
            break
    record = alice.record(key)
    assert record is not None
    assert record.job_id is not None
    cluster.wait_job(record.job_id, ["FAILED"])
    alice_agent.start()
    story = follow(alice, key)
    assert (story.record.state, story.record.exit_code) == (JobState.FAILED, 5)
    assert story.stdout == "begun\ndone\n"


def test_a_stopped_agent_leaves_jobs_running_and_gives_the_lease_up(
    alice: SiteClient, alice_agent: AgentProcess
) -> None:
    key = alice.submit(spec("bash", "-c", "echo begun; sleep 2; echo done"))
    for event in alice.follow(key):
        if isinstance(event, Output):
            break
    alice_agent.stop()
    assert alice.heartbeats()[0].heartbeat.released
    alice_agent.start()
    assert follow(alice, key).stdout == "begun\ndone\n"


def test_a_node_that_dies_ends_its_job_as_node_fail(alice: SiteClient, cluster: Cluster) -> None:
    key = alice.submit(spec("bash", "-c", "echo on $SLURMD_NODENAME; sleep 600", options=JobOptions(nodelist="c2")))
    story, killed = Story(), False
    try:
        for event in alice.follow(key):
            story.hear(event)
            if not killed and story.stdout:
                cluster.kill_host("c2")
                killed = True
    finally:
        if killed:
            cluster.start_host("c2")
    assert story.stdout == "on c2\n"
    assert story.record.state is JobState.NODE_FAIL
    until(
        lambda: run(alice, "true", options=JobOptions(nodelist="c2")).record.state is JobState.COMPLETED,
        120,
        "c2 works",
    )


def test_the_agent_is_a_process_of_an_ordinary_user(cluster: Cluster, alice: SiteClient) -> None:
    assert heartbeat(alice).user == "alice"
    owner = cluster.exec("login", ["ps", "-o", "user=", "-C", "slurmbus-agent"]).stdout.split()
    assert "root" not in owner


@pytest.mark.parametrize("name", ["slurmctld"])
def test_a_restarted_controller_changes_nothing(alice: SiteClient, cluster: Cluster, name: str) -> None:
    key = alice.submit(spec("bash", "-c", "echo begun; sleep 6; echo done"))
    story, restarted = Story(), False
    for event in alice.follow(key):
        story.hear(event)
        if not restarted and story.stdout:
            cluster.daemon("restart", name)
            restarted = True
    assert (story.record.state, story.stdout) == (JobState.COMPLETED, "begun\ndone\n")
