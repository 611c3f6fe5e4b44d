"""The tests of jobs, outages and a forgetful Slurm once more, with an agent that submits by Slurm's commands.

Left out are those in which only the agent's own patience is tried, for minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.jobs import run
from integration.test_forgetful_slurm import (
    test_a_cancelled_job_that_a_requeue_brings_back_ends_all_the_same,  # noqa: F401
    test_a_pending_job_that_the_controller_forgot_is_submitted_again_and_its_id_may_be_anothers,  # noqa: F401
    test_a_requeue_is_followed_into_the_next_start,  # noqa: F401
    test_a_requeue_that_is_asked_for_here_starts_the_job_again_once,  # noqa: F401
    test_a_running_job_that_slurm_starts_a_second_time_runs_once_and_is_no_success,  # noqa: F401
    test_a_submit_that_a_frozen_controller_carries_out_late_runs_once,  # noqa: F401
    test_with_accounting_frozen_a_forgotten_job_waits_and_is_told_rightly_afterwards,  # noqa: F401
)
from integration.test_jobs import (
    test_a_cancel_ends_a_running_job,  # noqa: F401
    test_a_job_runs_and_everything_it_says_comes_back,  # noqa: F401
    test_a_job_starts_from_a_login_shell_and_not_from_the_agents_environment,  # noqa: F401
    test_accounting_follows_the_final_state,  # noqa: F401
    test_an_out_of_memory_kill_is_told_as_such,  # noqa: F401
    test_an_unknown_partition_is_refused_in_slurms_own_words,  # noqa: F401
    test_exit_codes,  # noqa: F401
    test_impossible_memory_is_refused,  # noqa: F401
    test_signals,  # noqa: F401
)
from integration.test_outages import (
    heartbeat,
    test_an_agent_that_is_killed_and_started_again_goes_on_where_it_stopped,  # noqa: F401
)
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AGENT, AgentProcess
from slurmbus_protocol.states import JobState

SITE = "commands-alice"


@pytest.fixture(scope="module")
def alice_agent(cluster: Cluster, home: Home) -> Iterator[AgentProcess]:
    """Alice's agent, which submits by Slurm's commands."""
    home.add_site(SITE, scheduler="commands", slurm_conf="/etc/slurm/slurm.conf")
    with AgentProcess(cluster, SITE, home.bundle_path(SITE)) as agent:
        yield agent


@pytest.fixture(scope="module")
def alice(alice_agent: AgentProcess, home: Home) -> Iterator[SiteClient]:
    """A client of that site."""
    connection = Connection.get(ConnectionSettings.of_site(home, alice_agent.site))
    yield SiteClient(connection, alice_agent.site)
    connection.close()


def test_the_heartbeat_tells_by_what_it_submits(alice: SiteClient) -> None:
    assert run(alice, "true").record.state is JobState.COMPLETED
    scheduler = heartbeat(alice).scheduler
    assert scheduler.kind == "commands"
    assert scheduler.version.startswith("26.05")
    assert scheduler.responding


def test_the_doctor_prefers_pyslurm_where_it_fits(cluster: Cluster) -> None:
    told = cluster.exec("login", [AGENT, "doctor"], user="alice").stdout
    assert "'auto' picks 'native': pyslurm fits Slurm 26.05" in told
    env = {"PYTHONPATH": "/opt/broken"}
    cluster.copy_to("login", b"raise ImportError('libslurm.so.99: cannot open')", "/opt/broken/pyslurm.py")
    told = cluster.exec("login", [AGENT, "doctor"], user="alice", env=env).stdout
    assert "'auto' picks 'commands': pyslurm can't be loaded: libslurm.so.99: cannot open" in told
