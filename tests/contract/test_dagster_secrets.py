"""Secret variables of assets: in no event, launch handle or log of Dagster's."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import secrets
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from contract.agent_site import SITE
from contract.authority_site import Guarded, guarded_site, holders
from dagster_slurmbus import BusResource, ComputeResource, PipesSlurmClient, SlurmResource

pytestmark = pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_site(tmp_path_factory.mktemp("guarded")) as site:
        yield site


@pytest.mark.parametrize("kind", ["payload", "command"])
def test_in_dagster_it_stands_in_no_event_and_no_launch_handle(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """Named by the resource and given by the call; searched in all of Dagster's storage."""
    value = f"s3cret-{secrets.token_hex(16)}"
    monkeypatch.setenv("SHARED_TOKEN", f"{value}-shared")
    home = guarded.site.home
    bus = BusResource(home=str(home.path))
    script = 'test -n "$OWN_TOKEN" && echo own ${#OWN_TOKEN}, shared ${#SHARED_TOKEN}'

    @dg.asset
    def with_secret(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        own = {"OWN_TOKEN": value}
        if kind == "command":
            client = compute.pipes_client(context)
            done = client.run(context=context, command=["sh", "-c", script], secret_env=own)
            return done.get_materialize_result()
        path = tmp_path / "payload.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        return compute.run(context=context, payload_path=path, secret_env=own).get_materialize_result()

    compute = ComputeResource(mode="slurm", slurm=SlurmResource(site=SITE, bus=bus, secret_env=["SHARED_TOKEN"]))
    storage = tmp_path / "dagster"
    storage.mkdir()
    with dg.DagsterInstance.local_temp(str(storage)) as instance:
        result = dg.materialize([with_secret], instance=instance, resources={"compute": compute})
        assert result.success
    shown = capfd.readouterr()
    assert f"own {len(value)}, shared {len(value) + 7}" in shown.out
    assert value not in shown.out + shown.err
    assert holders(storage, value) == []
    assert holders(guarded.folder, value) == []


def test_a_secret_that_is_not_set_here_is_named_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    client = PipesSlurmClient(site="nowhere")

    @dg.op
    def step(context: dg.OpExecutionContext) -> None:
        client.run(context=context, command=["true"], secret_env=["NOT_SET"])

    @dg.job
    def job() -> None:
        step()

    result = job.execute_in_process(raise_on_error=False)
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "NOT_SET isn't set here" in str(failure.step_failure_data.user_failure_data)
