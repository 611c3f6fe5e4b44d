"""Real Ray clusters inside jobs of the real cluster."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_slurmbus import RayLauncher
from integration.jobs import Story, follow
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.events import Output
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import JobOptions, JobSpec
from slurmbus_protocol.states import JobState

PYTHON = "/opt/payload/bin/python"
HERE = Path(__file__).parent / "payloads"
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "launchers"
TWO_NODES = JobOptions(nodes=2, ntasks_per_node=1, cpus_per_task=2, mem_per_node_mib=1500)
ONE_NODE = JobOptions(nodes=1, cpus_per_task=1, mem_per_node_mib=1500)
HELD = """
import os, time, ray
ray.init("auto")
print("attached", os.environ["RAY_ADDRESS"], os.getcwd())
while not os.path.exists("go-on"):
    time.sleep(0.1)
"""
ATTACHED = """
import ray
ray.init("auto")
nodes, answer = len(ray.nodes()), ray.get(ray.remote(lambda: 6 * 7).remote())
print("nodes", nodes, "answer", answer, "cpus", ray.cluster_resources()["CPU"])
"""
LOCAL = """
import os, ray
ray.init("auto")
print(ray.get(ray.remote(lambda: os.uname().nodename).remote()))
raise SystemExit(3)
"""


def job(*argv: str, options: JobOptions = TWO_NODES, env: dict[str, str] | None = None, **settings: Any) -> JobSpec:
    """Give a job with a Ray cluster; ``argv`` are a payload of this folder and its arguments."""
    launcher = RayLauncher(**{"python": PYTHON, "start_timeout": 300, **settings})
    payload = str(argv[0])
    return JobSpec(
        name="ray",
        plan=launcher.plan(payload, argv[1:]),
        options=options,
        env={"PYTHONUNBUFFERED": "1", "RAY_DEDUP_LOGS": "0", **(env or {})},
    )


def submit(client: SiteClient, spec: JobSpec, code: str | None = None) -> str:
    """Submit a job with its payload's file."""
    payload = next(word for word in spec.plan.argv if word.endswith(".py"))
    ref = client.upload_bytes(code.encode(), payload) if code is not None else client.upload(HERE / payload, payload)
    return client.submit(JobSpec(name=spec.name, plan=spec.plan, options=spec.options, env=spec.env, files=(ref,)))


def result(story: Story) -> dict[str, Any]:
    assert story.record.state is JobState.COMPLETED, story.stderr
    [line] = [line for line in story.stdout.splitlines() if line.startswith("RESULT ")]
    content: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return content


def left_over(cluster: Cluster) -> str:
    """Give the processes and folders of Ray's that are left on the compute nodes, as /proc and /tmp show them."""
    look = (
        "for p in /proc/[0-9]*; do [ \"$(stat -c %U $p 2>/dev/null)\" = alice ] && tr '\\0' ' ' <$p/cmdline && echo; "
        "done; ls -d /tmp/ray-* 2>/dev/null; true"
    )
    return "".join(cluster.exec(host, ["bash", "-c", look]).stdout for host in ("c1", "c2"))


@pytest.fixture(autouse=True)
def _nothing_is_left(cluster: Cluster) -> Any:
    """Whatever a test did, nothing of it is on any node right after."""
    yield
    left = left_over(cluster).strip()
    for host in ("c1", "c2") if left else ():  # so that the next test answers for itself alone
        cluster.exec(host, ["bash", "-c", "pkill -KILL -u alice; rm -rf /tmp/ray-*"], check=False)
    assert left == ""


def hear(client: SiteClient, key: str, text: str, then: Callable[[], Any]) -> Story:
    """Follow a job, and do something once when a text was heard in its stdout."""
    story = Story()
    done = False
    for event in client.follow(key):
        story.hear(event)
        if isinstance(event, Output) and not done and text in story.stdout:
            done = True
            then()
    return story


def test_two_clusters_on_the_same_two_nodes(alice: SiteClient, cluster: Cluster) -> None:
    settings: dict[str, Any] = {
        "num_gpus_per_node": 1,
        "pre_start_commands": ["export FROM_PRE_START=$(hostname)", "echo prepared"],
    }
    options = JobOptions(
        partition="gpu", nodes=2, ntasks_per_node=1, cpus_per_task=2, mem_per_node_mib=1500, gpus_per_node="1"
    )
    keys = [submit(alice, job("ray_nodes.py", "1", options=options, **settings)) for _ in range(2)]
    stories = [follow(alice, key) for key in keys]
    found = [result(story) for story in stories]
    for story, one in zip(stories, found, strict=True):
        assert (one["sum"], one["hosts"], one["pre_start"]) == (30, ["c1", "c2"], ["c1", "c2"])
        assert (one["cpus"], one["all_gpus"]) == (4, 2)
        assert one["open_to_others"] == []
        assert all(one["gpus"]), one["gpus"]
        for host in ("c1", "c2"):  # what tasks print is in the job's log
            assert re.search(rf"task \d0 on {host}\n", story.stdout), story.stdout
        assert (one["page"], one["api_without_token"]) == (200, 401)
        port = one["facts"]["ray_dashboard"].rpartition(":")[2]
        assert one["facts"]["ray_dashboard_tunnel"].startswith(f"ssh -N -L {port}:")
        assert one["facts"]["ray_dashboard_tunnel"].endswith(f":{port} alice@login")
        assert story.record.starts[-1].facts == one["facts"]
        assert "[c1] prepared" in story.stderr
        assert "[c2] prepared" in story.stderr
        assert "is ready on c1, c2 after" in story.stderr
        ended = story.record.starts[-1].ended_at
        assert ended is not None
        assert ended - one["ended_at"] < 30  # a generous bound on a shared machine; bench_ray.py measures it
    assert found[0]["address"] != found[1]["address"]


@pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")  # Dagster's own
def test_an_asset_with_ray(alice: SiteClient, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("COMPUTE", "slurm")
    monkeypatch.setenv("PAYLOAD_PYTHON", PYTHON)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    spec = importlib.util.spec_from_file_location("slurmbus_example_launchers", EXAMPLE / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    definitions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definitions)
    with dg.instance_for_test() as instance:
        result = dg.materialize([definitions.simulated], resources=definitions.defs.resources, instance=instance)
        [found] = result.asset_materializations_for_node("simulated")
        [running] = result.asset_observations_for_node("simulated")
        logged = instance.all_logs(result.run_id)
    metadata = {name: value.value for name, value in found.metadata.items()}
    assert abs(float(str(metadata["pi"])) - 3.14) < 0.1
    assert (metadata["cpus"], metadata["nodes"]) == (4, 2)
    # Its dashboard could be clicked while it ran.
    seen = running.metadata["slurmbus/ray_dashboard"]
    assert isinstance(seen, dg.UrlMetadataValue)
    assert seen == found.metadata["slurmbus/ray_dashboard"]
    assert str(running.metadata["slurmbus/ray_dashboard_tunnel"].value).startswith("ssh -N -L ")
    ended = next(entry.timestamp for entry in logged if entry.user_message.endswith("is COMPLETED on c[1-2]"))
    [observed] = [entry.timestamp for entry in logged if entry.asset_observation]
    assert observed < ended


def test_a_lost_worker_is_reported_and_the_payload_goes_on(alice: SiteClient) -> None:
    story = follow(alice, submit(alice, job("ray_loses_a_worker.py", dashboard=False)))
    assert (story.record.state, story.record.exit_code) == (JobState.FAILED, 7)
    assert "went on c1" in story.stdout
    assert "Ray's worker on c2 is lost" in story.stderr
    assert "the cluster goes on with 1 of 2 nodes" in story.stderr
    assert story.record.starts[-1].error is None


def test_a_helper_that_is_gone_and_a_watch_that_was_killed(alice: SiteClient, cluster: Cluster) -> None:
    lost = {
        "helper": "Ray's worker on c2 is lost (the node's helper is gone)",
        "watch": "Ray's worker on c2 is lost (Ray doesn't hear from it any more)",
    }
    # So that Ray gives a frozen node up within some seconds, not half a minute.
    sooner = {"RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3"}
    keys = {
        what: submit(
            alice, job("ray_loses_a_worker.py", what, dashboard=False, env=sooner if what == "watch" else None)
        )
        for what in lost
    }
    for what, key in keys.items():
        story, told = Story(), False
        for event in alice.follow(key):
            story.hear(event)
            if not told and lost[what] in story.stderr and "went on c1" in story.stdout:
                told = True
                running = alice.record(key)
                assert running is not None
                cluster.exec("login", ["touch", f"{running.work_dir}/go-on"], user="alice")
        assert (story.record.state, story.record.exit_code) == (JobState.FAILED, 7), story.stderr
        assert lost[what] in story.stderr
        assert story.stderr.count("the cluster goes on with 1 of 2 nodes") == 1
        assert ("watched again 1 1\n" in story.stdout) is (what == "watch")
    # Slurm has ended what was below the killed helper; its folder nobody else knows.
    left = left_over(cluster).strip()
    assert re.fullmatch(r"/tmp/ray-\w+", left), left
    cluster.exec("c2", ["rm", "-r", left])


def test_a_node_on_which_ray_cant_be_started_is_named(alice: SiteClient, cluster: Cluster) -> None:
    script = f'#!/bin/sh\nif [ "$(hostname)" = c2 ]; then echo "no Ray on Sundays"; exit 9; fi\nexec {PYTHON} "$@"\n'
    cluster.copy_to("login", script.encode(), "/home/alice/moody-python", owner="alice", mode=0o700)
    record = follow(alice, submit(alice, job("x.py", dashboard=False, python="/home/alice/moody-python"), "1")).record
    assert (record.state, record.exit_code) == (JobState.FAILED, 125)
    assert record.starts[-1].error == "Ray can't be started on c2: exit code 9: no Ray on Sundays"
    assert record.starts[-1].error_code == "launch-failed"


def test_cancelled_while_it_runs(alice: SiteClient) -> None:
    key = submit(alice, job("held.py", dashboard=False), HELD)
    story = hear(alice, key, "attached", lambda: alice.cancel(key, "enough"))
    assert story.record.state is JobState.CANCELLED


def test_cancelled_while_it_starts(alice: SiteClient, cluster: Cluster) -> None:
    key = submit(alice, job("held.py", pre_start_commands=["echo prepared"]), HELD)
    story = Story()
    for event in alice.follow(key):
        story.hear(event)
        if isinstance(event, Output) and "prepared" in story.stderr:
            alice.cancel(key, "enough")
    assert story.record.state is JobState.CANCELLED
    assert "attached" not in story.stdout


def test_a_cluster_that_is_there_already_and_a_single_node(alice: SiteClient) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}
    first = submit(alice, job("held.py", options=ONE_NODE, dashboard=False, env=token), HELD)
    second: list[Story] = []

    def use_it() -> None:
        _, address, folder = heard.stdout.split()
        code = f"{ATTACHED}\nopen('{folder}/go-on', 'w').close()"
        spec = job("use.py", options=ONE_NODE, ray_address=address, env=token)
        second.append(follow(alice, submit(alice, spec, code)))

    heard = Story()
    for event in alice.follow(first):
        heard.hear(event)
        if not second and heard.stdout.endswith("\n"):
            use_it()
    assert heard.record.state is JobState.COMPLETED, heard.stderr
    assert second[0].record.state is JobState.COMPLETED, second[0].stderr
    assert "nodes 1 answer 42 cpus 1.0" in second[0].stdout
    nobody = follow(alice, submit(alice, job("x.py", options=ONE_NODE, ray_address="c1:9"), "print('never')"))
    assert "ray_address: nothing answers at c1:9" in (nobody.record.starts[-1].error or "")


def test_without_slurm_the_same_launcher_works(cluster: Cluster, home: Home) -> None:
    site = "cluster-ray-local"
    home.add_site(site, scheduler="local")
    with AgentProcess(cluster, site, home.bundle_path(site)):
        client = SiteClient(Connection.get(ConnectionSettings.of_site(home, site)), site)
        story = follow(client, submit(client, job("x.py", dashboard=False, num_cpus_per_node=1), LOCAL))
    assert (story.record.state, story.record.exit_code, story.stdout) == (JobState.FAILED, 3, "login\n"), story.stderr
    look = "pgrep -a -u alice raylet; pgrep -a -u alice gcs_server; ls -d /tmp/ray-* 2>/dev/null; true"
    assert cluster.exec("login", ["bash", "-c", look]).stdout == ""
