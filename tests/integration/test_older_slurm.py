"""The way of a job from end to end with the Slurm of older Debian releases, where there are only Slurm's commands."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.commands_site import CommandsSite
from contract.test_options import GROUPS, options_of, taken_by
from dagster_slurmbus import RayLauncher
from integration.buses import running_home
from integration.jobs import follow, run, spec
from integration.laptops import Laptop
from integration.logins import Logins
from integration.test_forgetful_slurm import crash, record_when, saved
from integration.test_jobs import (
    test_a_cancel_ends_a_running_job,  # noqa: F401
    test_a_gpu_job_gets_its_gpu,  # noqa: F401
    test_a_job_starts_from_a_login_shell_and_not_from_the_agents_environment,  # noqa: F401
    test_accounting_follows_the_final_state,  # noqa: F401
    test_an_out_of_memory_kill_is_told_as_such,  # noqa: F401
    test_an_unknown_partition_is_refused_in_slurms_own_words,  # noqa: F401
    test_exit_codes,  # noqa: F401
    test_impossible_memory_is_refused,  # noqa: F401
    test_signals,  # noqa: F401
)
from integration.test_outages import frozen_controller, heartbeat, until
from integration.test_ray import hear, left_over
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.home import Home
from slurmbus_agent.scheduler.base import Refused
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AGENT, AgentProcess
from slurmbus_cluster.image import RELEASES
from slurmbus_protocol.messages import JobOptions, JobSpec
from slurmbus_protocol.options import BY_NAME
from slurmbus_protocol.states import JobState

SITE = "older-alice"
LIKE_RAY = Path(__file__).parents[1] / "contract" / "payloads" / "like_ray.py"
BOTH_NODES = JobOptions(
    partition="gpu", nodes=2, ntasks_per_node=1, cpus_per_task=2, mem_per_cpu_mib=200, gpus_per_node="1"
)
HELD = """
cat "$SLURMBUS_SPOOL"/joined/*
echo "in $PWD"
while [ ! -e go-on ]; do sleep 0.1; done
exit 3
"""
NOT_THERE: dict[str, dict[str, str]] = {
    "trixie": {},
    "bookworm": {"tres_per_task": "TresPerTask", "oom_kill_step": "OOMKillStep", "node_extra": "Extra", "segment": ""},
}
"""Options of the groups that a release's Slurm doesn't have, and how newer ones show them."""


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The cluster of one release."""
    found: Cluster = request.getfixturevalue(f"cluster_{request.param}")
    return found


@pytest.fixture(scope="module")
def home(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A bus of its own: the release's cluster has a network of its own."""
    with running_home(tmp_path_factory.mktemp("older"), cluster.gateway) as home:
        home.add_site(SITE, scheduler="auto")
        yield home


@pytest.fixture(scope="module")
def alice_agent(cluster: Cluster, home: Home) -> Iterator[AgentProcess]:
    """Alice's agent, which finds out by itself that there are only commands."""
    with AgentProcess(cluster, SITE, home.bundle_path(SITE)) as agent:
        yield agent


@pytest.fixture(scope="module")
def alice(alice_agent: AgentProcess, home: Home) -> Iterator[SiteClient]:
    """A client of that site."""
    connection = Connection.get(ConnectionSettings.of_site(home, alice_agent.site))
    yield SiteClient(connection, alice_agent.site)
    connection.close()


def test_a_job_runs_and_everything_it_says_comes_back(
    alice: SiteClient, alice_agent: AgentProcess, cluster: Cluster
) -> None:
    story = run(alice, "bash", "-c", 'echo "hello from $SLURMD_NODENAME as $USER"; echo oops >&2')
    record = story.record
    assert (record.state, record.exit_code) == (JobState.COMPLETED, 0)
    assert (story.stdout, story.stderr) == (f"hello from {record.node_list} as alice\n", "oops\n")
    scheduler = heartbeat(alice).scheduler
    assert (scheduler.kind, scheduler.responding) == ("commands", True)
    assert scheduler.version.startswith(RELEASES[cluster.release])
    assert "the scheduler is 'commands': pyslurm isn't installed here" in alice_agent.log


def test_one_command_sets_it_up(cluster: Cluster, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, Logins(cluster, tmp_path), tmp_path / "cache")
    try:
        with laptop.up("alice") as (site, said):
            assert "trial job   ran on c" in said.err
            assert "reaches the agent's link" in said.err
            assert laptop.run_job(site, "hostname").out.strip() in {"c1", "c2"}
            assert "commands answers" in laptop.slurmbus("doctor", site).out
    finally:
        laptop.close()


def test_a_controller_that_is_frozen_and_killed_changes_nothing(alice: SiteClient, cluster: Cluster) -> None:
    key = alice.submit(spec("bash", "-c", "echo begun; until [ -e go-on ]; do sleep 0.1; done; echo done; exit 4"))
    late: list[str] = []

    def break_it() -> None:
        with frozen_controller(cluster):
            late.append(alice.submit(spec("echo", "late")))
            until(lambda: not heartbeat(alice).scheduler.responding, 60, "the agent notices")
        record_when(alice, late[0], {JobState.RUNNING, JobState.COMPLETED})
        saved(cluster)  # what it hasn't saved it forgets: test_forgetful_slurm has that
        crash(cluster)
        record = alice.record(key)
        assert record is not None
        cluster.exec("login", ["touch", f"{record.work_dir}/go-on"], user="alice")

    story = hear(alice, key, "begun", break_it)
    assert story.stdout == "begun\ndone\n"
    assert (story.record.state, story.record.exit_code) == (JobState.FAILED, 4)
    after = follow(alice, late[0])
    assert (after.record.state, after.stdout) == (JobState.COMPLETED, "late\n")


def test_the_doctor_says_which_scheduler_and_why(alice: SiteClient, cluster: Cluster) -> None:
    assert heartbeat(alice).scheduler.kind == "commands"
    told = cluster.exec("login", [AGENT, "doctor", "--site", SITE], user="alice").stdout
    assert "'auto' picks 'commands': pyslurm isn't installed here" in told
    assert f"Slurm {RELEASES[cluster.release]}" in told
    assert "main (default), gpu, short" in told
    assert "Jobs can run from here." in told
    with frozen_controller(cluster):
        done = cluster.exec("login", [AGENT, "doctor"], user="alice", check=False)
    assert done.exit_code == 1
    assert "NO  controller" in done.stdout


def test_slurm_takes_every_group_of_options_and_what_it_doesnt_have_is_refused(cluster: Cluster) -> None:
    missing = NOT_THERE[cluster.release]
    told = cluster.exec("login", ["sbatch", "--help"]).stdout
    listed = set(re.findall(r"^\s+(?:-\w, )?--([a-z][a-z-]*)", told, re.MULTILINE))
    assert len(listed) > 80
    assert not listed & {BY_NAME[name].flag for name in missing}
    site = CommandsSite(cluster)

    async def check() -> None:
        async with site.open() as scheduler:
            for given, expected in GROUPS.values():
                there = {name: value for name, value in given.items() if name not in missing and value != []}
                found = await taken_by(scheduler, site, options_of(hold=True, **there))
                shown = {name: value for name, value in expected.items() if name not in {*missing.values(), UNSEEN}}
                assert {name: _as_now(found.get(name, "")) for name in shown} == shown, found
                for name in given.keys() & missing.keys():
                    flag = BY_NAME[name].flag
                    with pytest.raises(Refused, match=f"unrecognized option '--{flag}") as caught:
                        await taken_by(scheduler, site, options_of(hold=True, **{name: given[name]}))
                    assert f"the site's Slurm has no --{flag}" in caught.value.hint
                    assert caught.value.hint.endswith(f": leave {name} out")
            for misread in ("3", "*"):  # what this sbatch would take for --extra-node-info, if it doesn't know --extra
                if "node_extra" in missing:
                    with pytest.raises(Refused, match="unrecognized option '--extra'"):
                        await taken_by(scheduler, site, options_of(hold=True, node_extra=misread))

    asyncio.run(check())


UNSEEN = "SubmitLine"
"""Shown by ``scontrol`` of newer releases only."""


def _as_now(shown: str) -> str:
    """Give a generic resource as newer releases show it."""
    return shown.replace("gres:gpu:", "gres/gpu:") if shown.startswith("gres:") else shown


def test_a_launch_over_two_nodes_starts_on_both_and_leaves_nothing(alice: SiteClient, cluster: Cluster) -> None:
    """Slurm changed in 22.05 and 24.11 what a step inherits of its job: CPUs a task, memory, GPUs."""
    python = "/home/alice/like-ray"
    cluster.copy_to("login", LIKE_RAY, python, owner="alice", mode=0o700)
    plan = RayLauncher(python=python, dashboard=False).plan("held.sh")
    files = (alice.upload_bytes(HELD.encode(), "held.sh"),)

    def submit() -> str:
        return alice.submit(JobSpec(name="ray", plan=plan, options=BOTH_NODES, files=files))

    def running() -> list[str]:
        look = ["pgrep", "-u", "alice", "-f", f"{python} .*--ray-start"]
        return [host for host in ("c1", "c2") if cluster.exec(host, look, check=False).stdout]

    key, there = submit(), []

    def go_on() -> None:
        there.extend(running())
        record = alice.record(key)
        assert record is not None
        cluster.exec("login", ["touch", f"{record.work_dir}/go-on"], user="alice")

    story = hear(alice, key, "in /", go_on)
    assert (story.record.state, story.record.exit_code) == (JobState.FAILED, 3), story.stderr
    assert there == ["c1", "c2"]
    nodes = [json.loads(line) for line in story.stdout.splitlines()[:-1]]
    assert {(node["node_name"], node["num_cpus"], node["num_gpus"]) for node in nodes} == {("c1", 2, 1), ("c2", 2, 1)}
    assert "is ready on c1, c2 after" in story.stderr
    assert left_over(cluster).strip() == ""

    key = submit()
    story = hear(alice, key, "in /", lambda: alice.cancel(key, "enough"))
    assert story.record.state is JobState.CANCELLED
    assert left_over(cluster).strip() == ""
