"""Environments of assets, on this machine's local helper."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from contract.scripted_jobs import failure_of
from dagster_slurmbus import ComputeResource, Requirements
from environment_lab import make_lock, make_package
from slurmbus.home import Home
from slurmbus.local import stop_local


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("SLURMBUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLURMBUS_CACHE", str(tmp_path / "cache"))
    yield Home.default()
    stop_local(Home.default())


def test_an_asset_runs_in_its_environment_and_says_what_takes_long(
    home: Home, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    payload = tmp_path / "payload.py"
    payload.write_text(
        "import demo, sys\nfrom dagster_pipes import open_dagster_pipes\n"
        "with open_dagster_pipes() as pipes:\n"
        "    pipes.report_asset_materialization(metadata={'value': demo.VALUE, 'prefix': sys.prefix})\n"
    )
    lock = make_lock(tmp_path, make_package(tmp_path, "demo", "VALUE = 'packed'\ndef main(): ...\n"))

    @dg.asset
    def shipped(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult:
        return compute.run(context=context, payload_path=payload).get_materialize_result()

    @dg.asset(deps=[shipped])
    def there(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult:
        return compute.run(context=context, remote_payload_path=str(payload)).get_materialize_result()

    compute = ComputeResource(environment=Requirements(str(lock)))
    result = dg.materialize([shipped, there], resources={"compute": compute})
    assert result.success
    values = [result.asset_materializations_for_node(name)[0].metadata for name in ("shipped", "there")]
    assert [value["value"].value for value in values] == ["packed", "packed"]
    assert values[0]["prefix"] == values[1]["prefix"]
    log = capfd.readouterr().err
    assert "environment: uploading" in log
    assert "is STAGING (installing environment" in log
    assert log.count("environment: uploading, ") <= 2  # the second one is there

    @dg.asset
    def unknown(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult:
        return compute.run(context=context, payload_path=payload, environment="nothing").get_materialize_result()

    failed = dg.materialize([unknown], resources={"compute": compute}, raise_on_error=False)
    message, _ = failure_of(failed)
    assert "this site has none that is called 'nothing'" in message
    assert "slurmbus env list" in message
