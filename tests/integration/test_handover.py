"""Handing over on a login node: a running Slurm job and its output don't notice that another process goes on."""

from __future__ import annotations

from contract.bus_site import wait_until
from integration.jobs import Story, spec
from slurmbus.client import SiteClient
from slurmbus.events import Output
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import Heartbeat
from slurmbus_protocol.states import JobState

LINES = 400


def leader(client: SiteClient) -> Heartbeat | None:
    return next((status.heartbeat for status in client.heartbeats() if status.alive and status.heartbeat.leader), None)


def test_a_job_outlives_the_process_that_submitted_it(
    cluster: Cluster, alice_agent: AgentProcess, alice: SiteClient
) -> None:
    wait_until(lambda: leader(alice) is not None, "the agent", 60.0)
    beat = leader(alice)
    assert beat is not None
    handovers = beat.vitals.handovers
    release = "/home/alice/handed-over"
    script = f"seq {LINES}; until [ -e {release} ]; do sleep 0.1; done; seq {LINES + 1} {2 * LINES}"
    story = Story()
    try:
        key = alice.submit(spec("sh", "-c", script))
        asked = False
        with alice.follow(key) as events:
            for event in events:
                story.hear(event)
                if isinstance(event, Output) and not asked:
                    asked = True
                    cluster.exec(alice_agent.host, ["kill", "-USR1", str(beat.pid)], user="alice")
                    wait_until(
                        lambda: (now := leader(alice)) is not None and now.vitals.handovers > handovers,
                        "the successor",
                        90.0,
                    )
                    cluster.exec("login", ["touch", release], user="alice")
    finally:
        cluster.exec("login", ["rm", "-f", release], user="alice")
        alice_agent.stop()
        alice_agent.start()
    assert story.record.state is JobState.COMPLETED
    assert len(story.record.starts) == 1
    assert not story.record.twins
    assert story.stdout == "".join(f"{number}\n" for number in range(1, 2 * LINES + 1))
