"""Environments on a real cluster: each kind in jobs on both nodes, and two login nodes that install one."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from contract.scripted_jobs import failure_of, log_of
from dagster_slurmbus import ComputeResource, SlurmResource, UvLock
from environment_lab import conda_prefix, make_package
from integration.jobs import follow, run, spec
from integration.test_outages import until
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.environments import CondaPack, Modules, PackedEnvironment, PixiPack, Requirements, Shipper
from slurmbus.environments.tools import find_uv
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import Environment, JobOptions
from slurmbus_protocol.states import JobState

BOTH_NODES = JobOptions(nodes=2, ntasks=2)
WHERE = """
import socket, sys
import msgspec, numpy, msgspec._core
print(socket.gethostname(), sys.prefix, msgspec._core.__file__, numpy.linalg.det(numpy.eye(3)), flush=True)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_CACHE", str(tmp_path / "cache"))


def test_packages_are_chosen_for_the_site_and_used_on_both_nodes(
    alice: SiteClient, cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("msgspec==0.22.0\nnumpy>=2.3\ntomli; python_version < '3.12'\n")
    shipper = Shipper(alice)
    python = shipper.target().python()
    ref, pack = shipper.wire(Requirements(str(path)))
    assert pack is not None
    assert b"tomli" not in pack.manifest  # this machine's Python may need it, the site's doesn't
    shipper.upload(pack)
    story = run(alice, "srun", "python3", "-c", WHERE, environment=ref, options=BOTH_NODES)
    assert story.record.state is JobState.COMPLETED, (story.record, story.stderr)
    lines = [line.split() for line in story.stdout.splitlines()]
    assert {line[0] for line in lines} == {"c1", "c2"}
    (prefix,) = {line[1] for line in lines}
    assert prefix.startswith("/home/alice/.slurmbus/")
    abi = "cp" + "".join(python.version.split(".")[:2])
    assert all(line[2].startswith(prefix) and abi[2:] in line[2] and line[3] == "1.0" for line in lines)
    assert "environment" in story.record.timings
    again = run(alice, "python3", "-c", WHERE, environment=ref)
    assert again.record.state is JobState.COMPLETED
    assert "environment" not in again.record.timings
    status = cluster.exec("login", ["stat", "-c", "%A", f"{prefix}/bin"], user="alice").stdout.strip()
    assert status == "dr-xr-xr-x"


def shipped(site: SiteClient, environment: PackedEnvironment) -> Environment:
    """Bring an environment to the bus, and give what a request says of it."""
    ref, pack = Shipper(site).wire(environment)
    assert pack is not None
    Shipper(site).upload(pack)
    return ref


def test_what_conda_pack_packed_is_used_on_both_nodes(alice: SiteClient, tmp_path: Path) -> None:
    ref = shipped(alice, CondaPack(str(conda_prefix(tmp_path))))
    story = run(alice, "srun", "tool", environment=ref, options=BOTH_NODES)
    assert story.record.state is JobState.COMPLETED, (story.record, story.stderr)
    (said,) = set(story.stdout.splitlines())
    where, yes, _, prefix = said.split()
    assert (where, yes) == (prefix, "yes")
    assert prefix.startswith("/home/alice/.slurmbus/")


def test_a_site_without_uv_fetches_packages_with_its_pip(alice: SiteClient, cluster: Cluster, tmp_path: Path) -> None:
    wheel = make_package(tmp_path, "fetched", "VALUE = 'by the site'\ndef main(): ...\n")
    there = f"/home/alice/wheels-{time.time_ns()}/{wheel.name}"
    cluster.copy_to("login", wheel.read_bytes(), there)
    path = tmp_path / "requirements.txt"
    path.write_text(f"fetched @ file://{there}\n")
    ref = shipped(alice, Requirements(str(path), resolve="site"))
    story = run(alice, "srun", "python3", "-c", "import fetched; print(fetched.VALUE)", environment=ref)
    assert story.stdout == "by the site\n", (story.record, story.stderr)


def test_modules_of_the_real_module_system(alice: SiteClient, cluster: Cluster) -> None:
    """No login shell of Alice's has the command ``module``: the runner has to find where it is defined."""
    folder = f"/home/alice/modules-{time.time_ns()}"
    needing = "#%Module\nmodule load python/3\nsetenv SOLVER_HOME /opt/solver\nprepend-path PATH /opt/solver/bin\n"
    cluster.copy_to("login", needing.encode(), f"{folder}/solver/2.1", owner="alice")
    code = "import os, sys; print(os.uname().nodename, sys.executable, os.environ['LOADEDMODULES'])"
    story = run(alice, "srun", "python3", "-c", code, environment=Modules("python/3").wire(), options=BOTH_NODES)
    assert story.record.state is JobState.COMPLETED, (story.record, story.stderr)
    python = "/opt/modules/python/bin/python3"
    assert sorted(story.stdout.splitlines()) == [f"{host} {python} python/3" for host in ("c1", "c2")]
    assert story.stderr == ""

    wanted = Modules("solver/2.1", use=(folder,), purge=True).wire()
    story = run(alice, "sh", "-c", "echo $SOLVER_HOME $LOADEDMODULES; command -v python3", environment=wanted)
    home, loaded, found = story.stdout.split()
    assert (home, set(loaded.split(":")), found) == ("/opt/solver", {"python/3", "solver/2.1"}, python), story.stderr

    failed = run(alice, "echo", "never", environment=Modules("python/3", "no-such/1").wire())
    assert (failed.record.state, failed.stdout) == (JobState.FAILED, "")
    assert "Unable to locate a modulefile for 'no-such/1'" in failed.stderr
    assert "slurmbus: 'module load no-such/1' failed on c" in failed.stderr


PROJECT = """
[project]
name = "locked"
version = "1.0"
requires-python = ">=3.11"
dependencies = ["msgspec==0.22.0"]
[dependency-groups]
train = ["demo"]
[tool.uv.sources]
demo = { index = "here" }
[[tool.uv.index]]
name = "here"
url = "wheels"
format = "flat"
explicit = true
"""
REPORTING = """
import sys, demo, msgspec._core
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    said = {"value": demo.VALUE, "prefix": sys.prefix, "compiled": msgspec._core.__file__, "program": sys.argv[0]}
    pipes.report_asset_materialization(metadata=said)
"""


@pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")  # Dagster's own
def test_assets_use_a_uv_lock_by_its_pushed_name_and_by_itself(
    alice: SiteClient, cluster: Cluster, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    project, payload, there = tmp_path / "locked", tmp_path / "payload.py", f"/home/alice/there-{time.time_ns()}.py"
    (project / "wheels").mkdir(parents=True)
    make_package(project / "wheels", "demo", "VALUE = 'locked'\ndef main(): ...\n")
    (project / "pyproject.toml").write_text(PROJECT)
    subprocess.run([find_uv(), "lock", "--quiet"], cwd=project, check=True)
    payload.write_text(REPORTING)
    cluster.copy_to("login", REPORTING.encode(), there, owner="alice")
    push = ["env", "push", "--site", alice.site, "--name", "train-1.4", "--group", "train", str(project)]
    pushed = subprocess.run(
        [Path(sys.executable).with_name("slurmbus"), *push], env=os.environ, capture_output=True, text=True, check=False
    )
    assert pushed.returncode == 0, pushed.stderr

    @dg.asset
    def by_name(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult:
        return compute.run(context=context, payload_path=payload, environment="train-1.4").get_materialize_result()

    @dg.asset(deps=[by_name])
    def by_lock(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult:
        return compute.run(context=context, remote_payload_path=there).get_materialize_result()

    lock = UvLock(str(project), groups=("train",))
    compute = ComputeResource(mode="slurm", slurm=SlurmResource(site=alice.site), environment=lock)
    with dg.instance_for_test() as instance:
        result = dg.materialize(
            [by_name, by_lock], resources={"compute": compute}, instance=instance, raise_on_error=False
        )
        assert result.success, failure_of(result)
        log = "\n".join(log_of(instance, result.run_id))
    (one,), (two,) = (result.asset_materializations_for_node(name) for name in ("by_name", "by_lock"))
    assert (one.metadata["value"].value, two.metadata["value"].value) == ("locked", "locked")
    assert one.metadata["prefix"] == two.metadata["prefix"]
    prefix = str(one.metadata["prefix"].value)
    assert prefix.startswith("/home/alice/.slurmbus/")
    assert pushed.stdout.strip()[:20] in prefix
    assert str(one.metadata["compiled"].value).startswith(prefix)
    assert two.metadata["program"].value == there
    assert "installing environment" not in log  # the push has waited for that


@pytest.fixture
def second_site(cluster: Cluster, home: Home, alice: SiteClient) -> Iterator[SiteClient]:
    """Another site of Alice's, whose agent runs on the other login node and installs into the first one's folder."""
    name = "cluster-alice-2"
    home.add_site(name, scheduler="native", slurm_conf="/etc/slurm/slurm.conf")
    bundle = home.bundle_path(name)
    bundle.write_text(bundle.read_text() + f'\n[environments]\nfolder = "~/.slurmbus/{alice.site}/environments"\n')
    connection = Connection.get(ConnectionSettings.of_site(home, name))
    client = SiteClient(connection, name)
    with AgentProcess(cluster, name, bundle, host="login2") as agent:
        until(lambda: any(one.heartbeat.leader for one in client.heartbeats()), 60, f"its agent: {agent.log}")
        yield client
    connection.close()
    home.remove_site(name)


def test_two_login_nodes_that_install_the_same_at_once_do_it_once(
    alice: SiteClient, second_site: SiteClient, cluster: Cluster, tmp_path: Path
) -> None:
    folder = f"/home/alice/slow-{time.time_ns()}"
    cluster.exec("login", ["mkdir", folder], user="alice")
    script = tmp_path / "slow.sh"
    script.write_text(
        f"#!/bin/sh\nuname -n >> {folder}/runs\n"
        f"for _ in $(seq 1200); do test -e {folder}/release && break; sleep 0.05; done\n"
        "mkdir -p $2/env/bin $2/env/conda-meta; cp /bin/uname $2/env/bin/tool\n"
    )
    sites = (alice, second_site)
    keys = []
    for site in sites:
        ref, pack = Shipper(site).wire(PixiPack(str(script)))
        assert pack is not None
        Shipper(site).upload(pack)
        keys.append(site.submit(spec("tool", "-n", environment=ref)))

    def reasons() -> list[str]:
        records = [site.record(key) for site, key in zip(sites, keys, strict=True)]
        return [str(record.reason) if record else "" for record in records]

    until(
        lambda: any("waiting for the agent on login" in reason for reason in reasons()), 60, "one waits for the other"
    )
    cluster.exec("login", ["touch", f"{folder}/release"], user="alice")
    for site, key in zip(sites, keys, strict=True):
        story = follow(site, key)
        assert story.record.state is JobState.COMPLETED, story.record
        assert story.stdout.strip() in {"c1", "c2"}
    assert len(cluster.exec("login", ["cat", f"{folder}/runs"], user="alice").stdout.split()) == 1
