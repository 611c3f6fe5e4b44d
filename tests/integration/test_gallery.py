"""The gallery in docs/examples: each example as it stands there, on the cluster and, where it can, here."""

import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.backfill import execute_backfill_iteration

from contract.bus_site import wait_until
from contract.scripted_jobs import failure_of, log_of, output_of
from integration.conftest import SITES
from slurmbus.home import Home
from slurmbus.local import stop_local
from slurmbus_cluster import Cluster

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
BOTH_NODES = ["c1", "c2"]
BACKFILL = "gallery"
INSTANCE = """\
telemetry:
  enabled: false
run_launcher:
  module: dagster._core.launcher.sync_in_memory_run_launcher
  class: SyncInMemoryRunLauncher
"""
"""Runs happen in the process that launches them: no daemon is needed."""

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text(INSTANCE)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.fixture(scope="module")
def local_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("local") / "slurmbus"
    yield home
    stop_local(Home(home))


@dataclass
class Ran:
    """A run of an example."""

    result: dg.ExecuteInProcessResult

    def metadata(self, asset: str) -> dict[str, Any]:
        (materialization,) = self.result.asset_materializations_for_node(asset)
        return {name: value.value for name, value in materialization.metadata.items()}


Run = Callable[..., Ran]


def run_example(name: str, instance: dg.DagsterInstance) -> Ran:
    spec = importlib.util.spec_from_file_location(f"slurmbus_example_{name}", EXAMPLES / name / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    job = module.defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert result.success, failure_of(result)
    return Ran(result)


def backfill(name: str, asset: str, partitions: list[str], instance: dg.DagsterInstance) -> None:
    """Do what Dagster's daemon does for a backfill that somebody asked for: plan it and launch its runs."""
    target = LoadableTargetOrigin(python_file=str(EXAMPLES / name / "definitions.py"))
    with WorkspaceProcessContext(
        instance, InProcessWorkspaceLoadTarget(InProcessCodeLocationOrigin(target, location_name=name))
    ) as process:
        asked = PartitionBackfill.from_asset_partitions(
            backfill_id=BACKFILL,
            asset_graph=process.create_request_context().asset_graph,
            partition_names=partitions,
            asset_selection=[dg.AssetKey(asset)],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
        instance.add_backfill(asked)

        def is_done() -> bool:
            assert [error for error in execute_backfill_iteration(process, logging.getLogger(name)) if error] == []
            for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])):
                instance.launch_run(run.run_id, process.create_request_context())
            found = instance.get_backfill(BACKFILL)
            return found is not None and found.status is BulkActionStatus.COMPLETED_SUCCESS

        wait_until(is_done, "the backfill", 120.0)


@pytest.fixture
def on_the_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    home: Home = request.getfixturevalue("home")
    request.getfixturevalue("alice")
    monkeypatch.setenv("COMPUTE", "slurm")
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    return request.getfixturevalue("cluster")


@pytest.fixture(params=["local", pytest.param("slurm", marks=[pytest.mark.cluster, pytest.mark.timeout(900)])])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Where the example runs: on this machine, or on the cluster."""
    if request.param == "slurm":
        request.getfixturevalue("on_the_cluster")
    else:
        monkeypatch.setenv("COMPUTE", "local")
        monkeypatch.setenv("SLURMBUS_HOME", str(request.getfixturevalue("local_home")))
        monkeypatch.setenv("LOCAL_DATA_DIR", str(tmp_path / "data"))
    return str(request.param)


def is_from_there(place: str, metadata: dict[str, Any]) -> None:
    """Check that the example ran where it was sent."""
    assert metadata["slurmbus/state"] == "COMPLETED"
    if place == "slurm":
        assert metadata["slurmbus/node_list"] in BOTH_NODES
        assert metadata["slurmbus/partition"] == "main"
    else:
        assert metadata["slurmbus/site"] == "local"


def all_is_gone(cluster: Cluster) -> None:
    """Check that no process of the user's is left on the nodes."""
    for node in BOTH_NODES:
        wait_until(
            lambda node=node: not cluster.exec(node, ["pgrep", "-u", "alice", "-a"], check=False).stdout,
            f"the end of all processes on {node}",
        )


# ------------------------------------------------------------------ what teams bring along


@pytest.mark.cluster
def test_parsl_inside_the_allocation(cluster: Cluster, on_the_cluster: Cluster, instance: dg.DagsterInstance) -> None:
    ran = run_example("parsl", instance)
    said = ran.metadata("primes")
    assert said["primes"] == 33860
    assert said["hosts"] == BOTH_NODES
    assert said["slurmbus/nodes"] == 2
    assert "Parsl has 2 pools of 2 workers" in log_of(instance, ran.result.run_id)
    all_is_gone(cluster)


@pytest.mark.cluster
def test_executorlib_inside_the_allocation(
    cluster: Cluster, on_the_cluster: Cluster, instance: dg.DagsterInstance
) -> None:
    said = run_example("executorlib", instance).metadata("lattice_constant")
    assert said["lattice_constant"] == pytest.approx(1.5421, abs=1e-3)
    assert said["energy"] == pytest.approx(-8.610, abs=1e-2)
    assert said["hosts"] == BOTH_NODES
    assert (said["slurmbus/nodes"], said["slurmbus/cpus"]) == (2, 4)
    all_is_gone(cluster)


# ------------------------------------------------------------------ what every payload can do


def test_weather(place: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURMBUS_DEMO_MODE", place)
    monkeypatch.setenv("SLURMBUS_DEMO_SITE", SITES["alice"])
    monkeypatch.setenv("SLURMBUS_DEMO_RESULTS", str(tmp_path / "results"))
    ran = run_example("weather", instance)
    said = ran.metadata("model")
    assert 0 < said["mean_error"] < said["error_of_yesterdays_value"]
    assert said["slurmbus/state"] == "COMPLETED"
    if place == "slurm":
        assert said["slurmbus/partition"] == "gpu"
    assert (tmp_path / "results" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert f"Off by {said['mean_error']:.1f} °C" in (tmp_path / "results" / "report.md").read_text()


def test_pipes_checks(place: str, instance: dg.DagsterInstance) -> None:
    ran = run_example("pipes_checks", instance)
    said = ran.metadata("clean_readings")
    is_from_there(place, said)
    assert said["rows"] == 6
    assert said["mean"] == pytest.approx(38.4 / 6)
    assert said["columns"] == "`time`, `station`, `celsius`"
    found = {check.check_name: check for check in ran.result.get_asset_check_evaluations()}
    missing, left = found["nothing_missing"], found["enough_left"]
    assert (missing.passed, missing.severity, missing.metadata["missing"].value) == (
        False,
        dg.AssetCheckSeverity.WARN,
        1,
    )
    assert (left.passed, left.metadata["left"].value) == (True, 6)
    assert "south said 85.0 °C at 2026-11-01T12:00" in log_of(instance, ran.result.run_id)


def test_files(place: str, instance: dg.DagsterInstance) -> None:
    said = run_example("files", instance).metadata("tides")
    is_from_there(place, said)
    assert said["harbours"] == 2
    assert said["plot"].startswith("![plot](data:image/png;base64,iVBORw0KGgo")
    assert [record.data for record in said["table"].records] == [
        {"harbour": "north", "highest": "2.16", "lowest": "-2.03"},
        {"harbour": "south", "highest": "2.88", "lowest": "-2.62"},
    ]


def test_shell_script(place: str, instance: dg.DagsterInstance) -> None:
    ran = run_example("shell_script", instance)
    said = ran.metadata("simulation")
    is_from_there(place, said)
    assert said["result"] == 1.414214
    stdout, _ = output_of(ran.result, instance)
    first, last = stdout.decode().splitlines()
    assert first.startswith("solving cavity in 20 steps with 2 threads on ")
    assert last == "done: 1.414214"


@pytest.mark.filterwarnings(
    "ignore:Function `AssetSelection.sources` is deprecated:DeprecationWarning"
)  # Dagster's own
def test_switching(
    place: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    deployed = "/opt/payload" if place == "slurm" else sys.prefix
    monkeypatch.setenv("DEPLOYED_ENV", deployed)
    ran = run_example("switching", instance)
    said = ran.metadata("trained")
    is_from_there(place, said)
    assert said["slope"] == pytest.approx(3.0, abs=1e-4)
    assert said["python"] == deployed
    assert output_of(ran.result, instance)[0] == b"trained with 4 CPUs\n"
    if place == "slurm":
        cluster: Cluster = request.getfixturevalue("cluster")
        shown = cluster.job(said["slurmbus/job_id"])
        assert shown["qos"] == "normal"
        assert cluster.exec("login", ["ls", "/home/alice/pipelines"]).stdout.split()


def test_the_guide_shows_the_example_as_it_is() -> None:
    example = (EXAMPLES / "switching" / "definitions.py").read_text()
    shown = example[example.index("import os") : example.index("\n\ndefs = ")].rstrip()
    assert f"```python\n{shown}\n```" in (EXAMPLES.parent / "guides" / "switching.md").read_text()


@pytest.mark.filterwarnings(
    "ignore:Function `AssetSelection.sources` is deprecated:DeprecationWarning"
)  # Dagster's own
def test_partitions(place: str, instance: dg.DagsterInstance, request: pytest.FixtureRequest) -> None:
    days = ["2026-11-03", "2026-11-04", "2026-11-05"]
    backfill("partitions", "sunshine", days, instance)
    found = {
        record.partition_key: {name: value.value for name, value in record.asset_materialization.metadata.items()}
        for record in instance.fetch_materializations(dg.AssetKey("sunshine"), limit=10).records
        if record.asset_materialization is not None
    }
    assert sorted(found) == days
    assert len({said["slurmbus/key"] for said in found.values()}) == len(days)
    assert len(instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": BACKFILL}))) == len(days)
    for day, said in found.items():
        is_from_there(place, said)
        assert said["file"].endswith(f"/{day}.txt")
        assert 9 < said["hours"] < 10
        if place == "local":
            assert float(Path(said["file"]).read_text()) == pytest.approx(said["hours"], abs=1e-3)
    assert found[days[0]]["hours"] > found[days[1]]["hours"] > found[days[2]]["hours"]
    if place == "slurm":
        cluster: Cluster = request.getfixturevalue("cluster")
        for said in found.values():
            assert cluster.job(said["slurmbus/job_id"])["name"] == f"sunshine.{said['slurmbus/key']}"


def test_every_example_has_a_test_and_stands_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()
    folders = sorted(folder.name for folder in EXAMPLES.iterdir() if (folder / "definitions.py").exists())
    assert [name for name in folders if f"]({name}/)" not in index] == []
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name in folders if f'"{name}"' not in tests and f"examples/{name}" not in tests] == []
