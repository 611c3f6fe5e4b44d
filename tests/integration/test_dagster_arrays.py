"""``run_array()`` in Dagster on the real cluster: figures, checks, own metrics, more memory, and a retry."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import secrets
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from contract.scripted_jobs import failure_of, log_of
from dagster_slurmbus import (
    CompletedArray,
    ComputeResource,
    FinishedJob,
    MoreMemory,
    SlurmQueueConfig,
    SlurmResource,
    cpu_efficiency_check,
    memory_headroom_check,
)
from integration.conftest import SITES
from slurmbus.client import SiteClient
from slurmbus.home import Home
from slurmbus_cluster import Cluster

MIB = 1024**2


@pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning")  # Dagster's own
def test_an_array_with_its_figures_checks_and_policies(
    cluster: Cluster, home: Home, alice: SiteClient, payloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    mark = f"/home/alice/weak-{secrets.token_hex(4)}"
    seen: list[CompletedArray] = []

    def own(job: FinishedJob) -> dict[str, Any]:
        return {"credits": 100 * float(str(job.metadata["slurmbus/core_hours"].value))}

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def models(context: dg.AssetExecutionContext, compute: ComputeResource) -> Any:
        done = compute.run_array(
            context=context,
            payload_path=payloads / "three_tasks.py",
            tasks=["busy", "hungry", "weak"],
            extra_env={"MARK": mark},
            metrics=own,
        )
        seen.append(done)
        return done.get_materialize_result()

    compute = ComputeResource(
        mode="slurm",
        slurm=SlurmResource(site=SITES["alice"], queue=SlurmQueueConfig(mem="150M", time_limit="00:05:00")),
        on_out_of_memory=MoreMemory(factor=4, limit="2G"),
    )
    checks = [cpu_efficiency_check(models, minimum=0.01), memory_headroom_check(models, minimum=0.1)]
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        result = dg.materialize(
            [models, *checks], instance=instance, resources={"compute": compute}, raise_on_error=False
        )
        assert result.success, failure_of(result)
        lines = log_of(instance, result.run_id)
    (done,) = seen
    assert [(task.name, task.state, task.attempts, task.reattached) for task in done] == [
        ("busy", "COMPLETED", 1, True),
        ("hungry", "COMPLETED", 2, True),
        ("weak", "COMPLETED", 1, False),
    ]
    assert "1 tasks had too little memory or time. Running them again with mem=600M instead of 150M: hungry" in lines
    assert "running 1 tasks again: weak" in lines
    # As Slurm has it: three arrays, and their tasks keep their numbers.
    for task, memory in zip(done, ("150M", "600M", "150M"), strict=True):
        alice.wait_for_accounting(task.record.key, 30, task.index)
        row = cluster.accounting(f"{task.record.job_id}_{task.index}")[0]
        assert (row["State"], row["ReqMem"]) == ("COMPLETED", memory)
    assert len({task.record.job_id for task in done}) == 3

    (materialization,) = result.asset_materializations_for_node("models")
    shown = {name.removeprefix("slurmbus/"): value.value for name, value in materialization.metadata.items()}
    assert (shown["tasks_in_all"], shown["tasks_failed"], shown["tasks_given_more"]) == (3, 0, 1)
    used = [task.metadata["slurmbus/cpu_seconds"].value for task in done]
    assert shown["cpu_seconds"] == pytest.approx(sum(used))
    assert used[0] >= 2
    assert 0 < shown["cpu_efficiency"] <= 1
    assert shown["cpu_efficiency"] == pytest.approx(shown["cpu_seconds"] / shown["core_hours"] / 3600)
    assert shown["memory_allocated_bytes"] == 600 * MIB
    assert 300 / 600 <= shown["memory_efficiency"] < 0.9
    assert shown["memory_efficiency"] == done["hungry"].metadata["slurmbus/memory_efficiency"].value
    assert shown["node_hours"] == pytest.approx(shown["elapsed_seconds_in_all"] / 3600)
    assert set(shown["credits"]) == {"busy", "hungry", "weak"}
    assert shown["held"] == {"busy": 1, "hungry": 300 * MIB, "weak": 1}

    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert found["cpu_efficiency"].passed
    assert found["cpu_efficiency"].metadata["cpu_efficiency"].value == shown["cpu_efficiency"]
    assert found["memory_headroom"].passed
    assert found["memory_headroom"].metadata["memory_efficiency"].value == shown["memory_efficiency"]
