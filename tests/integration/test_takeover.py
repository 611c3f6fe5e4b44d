"""Two agents of one site on two login nodes: one serves, the other takes over, and a late riser does no harm."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from integration.jobs import follow, run, spec
from integration.test_forgetful_slurm import executions, record_when, submit
from integration.test_outages import until
from slurmbus.client import SiteClient
from slurmbus.events import Output
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import Heartbeat
from slurmbus_protocol.states import JobState

HEARTBEAT_BUSY = 2.0
"""Seconds between the heartbeats of an agent that has jobs."""


@pytest.fixture
def standby(cluster: Cluster, home: Home, alice_agent: AgentProcess, alice: SiteClient) -> Iterator[AgentProcess]:
    """A second agent of Alice's site, on the other login node, that stands by."""
    leader(alice)
    with AgentProcess(cluster, alice_agent.site, home.bundle_path(alice_agent.site), host="login2") as agent:
        until(lambda: "standing by" in agent.log, 30, "the second agent stands by")
        yield agent
        if alice_agent_is_down(alice_agent):
            alice_agent.start()
    until(lambda: leader(alice).host == "login", 60, "the first agent leads again")


def alice_agent_is_down(agent: AgentProcess) -> bool:
    try:
        return agent.process.poll() is not None
    except Exception:  # noqa: BLE001 - whatever it is, there is no process
        return True


def leader(client: SiteClient) -> Heartbeat:
    """Give the heartbeat of the agent that leads, waiting for one."""
    found: list[Heartbeat] = []

    def there() -> bool:
        found[:] = [item.heartbeat for item in client.heartbeats() if item.heartbeat.leader]
        return bool(found) and not found[0].released

    until(there, 60, "an agent leads")
    return found[0]


def taken_over(client: SiteClient, before: Heartbeat, seconds: float) -> float:
    begun = time.monotonic()
    until(lambda: leader(client).agent_id != before.agent_id, seconds, "the other agent leads")
    return time.monotonic() - begun


def test_a_killed_leader_is_followed_by_the_standby_while_a_job_runs(
    alice: SiteClient, alice_agent: AgentProcess, standby: AgentProcess, cluster: Cluster
) -> None:
    key = submit(alice, "killed", "for i in $(seq 150); do echo $i; sleep 0.1; done")
    record_when(alice, key, {JobState.RUNNING})
    before = leader(alice)
    alice_agent.kill()
    took = taken_over(alice, before, 30)
    print(f"taken over {took:.1f} s after the kill")
    story = follow(alice, key)
    assert story.record.state is JobState.COMPLETED
    assert story.stdout == "".join(f"{number}\n" for number in range(1, 151))
    assert story.record.epoch == before.epoch + 1
    assert len(executions(cluster, "killed")) == 1
    assert run(alice, "echo", "next").record.state is JobState.COMPLETED


def test_an_idle_leader_that_is_killed_is_followed_too(
    alice: SiteClient, alice_agent: AgentProcess, standby: AgentProcess
) -> None:
    until(lambda: leader(alice).interval > HEARTBEAT_BUSY, 30, "the leader is idle")
    before = leader(alice)
    # It says how seldom it speaks, so that nobody takes it for silent in between.
    waiting = [one.heartbeat for one in alice.heartbeats() if one.alive and not one.heartbeat.leader]
    assert {(beat.interval, beat.lease_seconds) for beat in waiting} == {(before.interval, before.lease_seconds)}
    alice_agent.kill()
    print(f"taken over {taken_over(alice, before, 60):.1f} s after the kill")
    assert run(alice, "echo", "next").record.state is JobState.COMPLETED


def test_a_stopped_leader_hands_over_at_once(
    alice: SiteClient, alice_agent: AgentProcess, standby: AgentProcess
) -> None:
    key = alice.submit(spec("bash", "-c", "echo begun; sleep 4; echo done"))
    record_when(alice, key, {JobState.RUNNING})
    before = leader(alice)
    alice_agent.stop()
    taken_over(alice, before, 10)
    assert follow(alice, key).stdout == "begun\ndone\n"


@pytest.mark.parametrize("moment", ["running", "submitting"])
def test_an_agent_that_was_frozen_does_nothing_when_it_wakes_up(
    alice: SiteClient, alice_agent: AgentProcess, standby: AgentProcess, cluster: Cluster, moment: str
) -> None:
    """Frozen with its scheduler's process, also inside the submit call."""
    mark = f"frozen-{moment}"
    text = "for i in $(seq 200); do echo $i; sleep 0.1; done"
    if moment == "running":
        key = submit(alice, mark, text)
        record_when(alice, key, {JobState.RUNNING})
    else:
        assert run(alice, "true").record.state is JobState.COMPLETED  # the controller isn't pinged before the next call
        cluster.daemon("freeze", "slurmctld")
        key = submit(alice, mark, text)
        record_when(alice, key, {JobState.SUBMITTING})
    before = leader(alice)
    freeze(cluster, alice_agent)
    if moment == "submitting":
        cluster.daemon("thaw", "slurmctld")
    taken_over(alice, before, 30)
    record_when(alice, key, {JobState.RUNNING})
    seen = 0
    for event in alice.follow(key):
        if isinstance(event, Output) and not seen:
            thaw(cluster, alice_agent)
            seen = 1
    story = follow(alice, key)
    assert story.record.state is JobState.COMPLETED
    assert story.stdout == "".join(f"{number}\n" for number in range(1, 201))
    assert story.record.epoch == before.epoch + 1
    assert len(executions(cluster, mark)) == 1
    until(lambda: "stepping down" in alice_agent.log, 20, "the late riser steps down")
    alice_agent.kill()


def processes(cluster: Cluster, agent: AgentProcess) -> list[str]:
    pid = str(agent.process.host_pid)
    children = cluster.exec(agent.host, ["pgrep", "-P", pid], check=False).stdout.split()
    return [pid, *children]


def freeze(cluster: Cluster, agent: AgentProcess) -> None:
    cluster.exec(agent.host, ["kill", f"-{signal.SIGSTOP}", *processes(cluster, agent)])


def thaw(cluster: Cluster, agent: AgentProcess) -> None:
    cluster.exec(agent.host, ["kill", f"-{signal.SIGCONT}", *processes(cluster, agent)])


def test_a_leader_that_is_cut_off_is_followed_by_the_standby(
    alice: SiteClient, alice_agent: AgentProcess, standby: AgentProcess, cluster: Cluster
) -> None:
    key = submit(alice, "cut", "for i in $(seq 200); do echo $i; sleep 0.1; done")
    record_when(alice, key, {JobState.RUNNING})
    before = leader(alice)
    cluster.disconnect("login")
    try:
        taken_over(alice, before, 30)
        story = follow(alice, key)
    finally:
        cluster.connect("login")
    assert story.record.state is JobState.COMPLETED
    assert story.stdout == "".join(f"{number}\n" for number in range(1, 201))
    assert len(executions(cluster, "cut")) == 1
    until(lambda: "stepping down" in alice_agent.log or "standing by" in alice_agent.log, 60, "it stands by")
    alice_agent.kill()
