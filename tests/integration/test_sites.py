"""The same assets on a laptop, on one site and on another: docs/examples/two_sites, as it stands there."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest

from contract.scripted_jobs import failure_of
from slurmbus.client import SiteClient
from slurmbus.home import Home
from slurmbus_cluster import Cluster

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "two_sites" / "definitions.py"

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def example(monkeypatch: pytest.MonkeyPatch, mode: str) -> ModuleType:
    monkeypatch.setenv("COMPUTE", mode)
    spec = importlib.util.spec_from_file_location("slurmbus_two_sites", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, instance: dg.DagsterInstance, **how: Any) -> dg.ExecuteInProcessResult:
    job = module.defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, raise_on_error=False, **how)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (materialization,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in materialization.metadata.items()}


@pytest.fixture
def on_the_cluster(
    alice: SiteClient, bob: SiteClient, home: Home, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> ModuleType:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    return example(monkeypatch, "slurm")


@pytest.mark.parametrize(
    "how",
    [
        {"tags": {"slurmbus/site": "cluster-bob"}},
        {"run_config": {"resources": {"compute": {"config": {"site": "cluster-bob"}}}}},
    ],
    ids=["tag", "launchpad"],
)
def test_one_setting_sends_a_run_to_the_other_site(
    on_the_cluster: ModuleType, cluster: Cluster, instance: dg.DagsterInstance, how: dict[str, Any]
) -> None:
    first = run(on_the_cluster, instance)
    assert first.success, failure_of(first)
    second = run(on_the_cluster, instance, **how)
    assert second.success, failure_of(second)
    for result, user, partition, measured_on, tuned_for in (
        (first, "alice", "main", ("main", 2), "anything"),
        (second, "bob", "short", ("gpu", 1), "cluster-bob"),
    ):
        said, measured = metadata(result, "mean"), metadata(result, "measurements")
        assert said["mean"] == 123.5
        assert said["host"] in {"c1", "c2"}
        assert said["slurmbus/partition"] == partition
        assert said["folder"] == f"/home/{user}/measurements"
        assert (said["python"], said["tuned for"]) == ("/opt/payload", tuned_for)
        assert measured["file"] == f"/home/{user}/measurements/values.txt"
        assert (measured["slurmbus/partition"], measured["slurmbus/cpus"]) == measured_on
        (row, *_) = cluster.accounting(said["slurmbus/job_id"])
        assert (row["User"], row["Partition"]) == (user, partition)


def test_the_same_assets_on_a_laptop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    monkeypatch.setenv("LOCAL_DATA_DIR", str(tmp_path / "data"))
    result = run(example(monkeypatch, "local"), instance)
    assert result.success, failure_of(result)
    said = metadata(result, "mean")
    assert (said["mean"], said["folder"]) == (123.5, str(tmp_path / "data"))
    assert (said["python"] == "/opt/payload", said["tuned for"]) == (False, "anything")
    assert metadata(result, "measurements")["file"] == str(tmp_path / "data" / "values.txt")


def test_a_site_that_there_isnt(monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance) -> None:
    result = run(example(monkeypatch, "slurm"), instance, tags={"slurmbus/site": "cluster-eve"})
    assert not result.success
    assert failure_of(result)[0] == (
        "the run's tag slurmbus/site names the site 'cluster-eve', which this resource doesn't have; "
        "it has 'cluster-alice', 'cluster-bob'"
    )
