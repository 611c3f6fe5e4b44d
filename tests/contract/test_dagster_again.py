"""Jobs that ran out of memory or time, again with more of it; own metrics; what accounting adds.

A real bus and real Dagster, and an agent that plays what Slurm would say.
"""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from contract.scripted_jobs import SITE, DagsterSite, Script, ScriptedJob, failure_of, handles_of, log_of, succeed
from dagster_slurmbus import ComputeResource, FinishedJob, MoreMemory, MoreTime, SlurmResource
from slurmbus_protocol.messages import Accounting, AccountingStep, JobOptions, Live, Used
from slurmbus_protocol.states import JobState

GIB = 1024**3


def ends(*states: JobState) -> Script:
    """One state for each job, in their order; each reports a result, and only that of the last may count."""
    left = list(states)

    async def script(job: ScriptedJob) -> None:
        state = left.pop(0)
        await job.begin()
        await job.pipes("opened", extras={})
        await job.materialize("thing", attempt=len(states) - len(left))
        if state is JobState.COMPLETED:
            await job.pipes("closed")
            await job.end()
        else:
            await job.end(state, exit_code=None, signal=9, slurm_state=state.value)

    return script


def materialized(
    site: DagsterSite, instance: dg.DagsterInstance, *, retries: int = 0, **arguments: Any
) -> dg.ExecuteInProcessResult:
    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=retries) if retries else None)
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return site.client.run(context=context, command="true", **arguments).get_materialize_result()

    return dg.materialize([thing], instance=instance, raise_on_error=False)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    assert result.success, failure_of(result)
    (materialization,) = result.asset_materializations_for_node("thing")
    return {name.removeprefix("slurmbus/"): value.value for name, value in materialization.metadata.items()}


def asked(site: DagsterSite) -> list[JobOptions]:
    return [job.spec.options for job in site.jobs]


MEMORY = MoreMemory(factor=2, limit="3G", attempts=3)


def test_more_memory_until_the_limit_and_then_success(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    slurm.script = ends(JobState.OUT_OF_MEMORY, JobState.OUT_OF_MEMORY, JobState.COMPLETED)
    result = materialized(slurm, instance, options={"mem": "1G"}, on_out_of_memory=MEMORY)
    metadata = metadata_of(result)
    assert [options.mem_per_node_mib for options in asked(slurm)] == [1024, 2048, 3072]
    assert len({job.submit.key for job in slurm.jobs}) == 3
    # What the jobs that failed had reported doesn't count.
    assert metadata["attempt"] == 3
    assert [(row.data["attempt"], row.data["state"], row.data["memory"]) for row in metadata["attempts"].records] == [
        (1, "OUT_OF_MEMORY", "1024M"),
        (2, "OUT_OF_MEMORY", "2048M"),
        (3, "COMPLETED", "3072M"),
    ]
    told = [line for line in log_of(instance, result.run_id) if "Running it again" in line]
    first, second = told
    assert first == (
        "Slurm job 100: out of memory: asked for 1 GiB, peak 1 MiB on c1. Running it again with mem=2048M instead of "
        "1024M, as attempt 2"
    )
    assert second.endswith("with mem=3072M instead of 2048M, as attempt 3")
    handles = handles_of(instance, result.run_id)
    assert [handle.client_name for handle in handles] == ["slurmbus:0", "slurmbus:again:1:0", "slurmbus:again:2:0"]
    assert [handle.external_run_id for handle in handles] == [job.submit.key for job in slurm.jobs]


def test_no_more_than_the_limit_and_no_retry_by_dagster(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    slurm.script = ends(*[JobState.OUT_OF_MEMORY] * 3)
    result = materialized(slurm, instance, retries=2, options={"mem": "2G"}, on_out_of_memory=MEMORY)
    assert [options.mem_per_node_mib for options in asked(slurm)] == [2048, 3072]
    words, metadata = failure_of(result)
    assert words.endswith("It was the last of 2 attempts")
    assert [row.data["memory"] for row in metadata["attempts"].records] == ["2048M", "3072M"]


def test_more_time_and_more_memory_are_counted_apart(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    slurm.script = ends(JobState.TIMEOUT, JobState.OUT_OF_MEMORY, JobState.TIMEOUT, JobState.COMPLETED)
    result = materialized(
        slurm,
        instance,
        options={"mem_per_cpu": "500M", "time_limit": 10},
        on_out_of_memory=MoreMemory(factor=1.5, attempts=1),
        on_timeout=MoreTime(factor=3, limit="1:00:00", attempts=2),
    )
    metadata = metadata_of(result)
    assert [(options.time_limit_minutes, options.mem_per_cpu_mib) for options in asked(slurm)] == [
        (10, 500),
        (30, 500),
        (30, 750),
        (60, 750),
    ]
    assert [row.data["time limit"] for row in metadata["attempts"].records] == [
        "00:10:00",
        "00:30:00",
        "00:30:00",
        "01:00:00",
    ]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT, JobState.DEADLINE])
def test_other_ends_are_not_its_business(slurm: DagsterSite, instance: dg.DagsterInstance, state: JobState) -> None:
    slurm.script = ends(state)
    assert not materialized(slurm, instance, options={"mem": "1G"}, on_out_of_memory=MEMORY).success
    assert len(slurm.jobs) == 1


@pytest.mark.parametrize("state", [JobState.NODE_FAIL, JobState.PREEMPTED, JobState.BOOT_FAIL])
def test_dagsters_retry_runs_what_the_cluster_broke_again_as_it_was(
    slurm: DagsterSite, instance: dg.DagsterInstance, state: JobState
) -> None:
    slurm.script = ends(JobState.OUT_OF_MEMORY, state, JobState.COMPLETED)
    result = materialized(slurm, instance, retries=1, options={"mem": "1G"}, on_out_of_memory=MEMORY)
    assert result.success
    # Not from the beginning: one gigabyte is known to be too little.
    assert [options.mem_per_node_mib for options in asked(slurm)] == [1024, 2048, 2048]


def test_dagsters_retry_leaves_memory_and_time_alone(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    for state in (JobState.OUT_OF_MEMORY, JobState.TIMEOUT):
        slurm.jobs.clear()
        slurm.script = ends(state, JobState.COMPLETED)
        assert not materialized(slurm, instance, retries=1, options={"mem": "1G"}).success
        assert len(slurm.jobs) == 1


def test_what_isnt_known_of_its_memory_is_taken_from_accounting(
    slurm: DagsterSite, instance: dg.DagsterInstance
) -> None:
    accounting = Accounting(
        state="OUT_OF_MEMORY", exit_code=0, signal=9, elapsed=2.0, cpu_seconds=1.0, alloc_cpus=2, alloc_tres="mem=1000M"
    )

    async def script(job: ScriptedJob) -> None:
        if len(slurm.jobs) > 1:
            await succeed(job)
            return
        await job.begin()
        await job.end(JobState.OUT_OF_MEMORY, exit_code=None, signal=9)
        await job.state(JobState.OUT_OF_MEMORY, accounting=accounting)

    slurm.script = script
    metadata_of(materialized(slurm, instance, on_out_of_memory=MoreMemory()))
    assert [options.mem_per_node_mib for options in asked(slurm)] == [None, 2000]


def test_a_step_that_was_killed_goes_on_with_the_attempt_that_runs(
    slurm: DagsterSite, instance: dg.DagsterInstance
) -> None:
    """The first attempt's step dies while the second job runs; its retry follows that job and starts nothing anew."""
    killed = []

    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        if len(slurm.jobs) == 1:
            await job.end(JobState.OUT_OF_MEMORY, exit_code=None, signal=9)
            return
        await job.pipes("log", message="die now", level="INFO")
        killed.append(job)

    slurm.script = script

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        if context.retry_number == 0:
            real = type(context.log).info
            first = context.log

            def info(text: str, *arguments: Any) -> None:
                real(first, text, *arguments)
                if "RUNNING" in text and len(slurm.jobs) == 2:
                    raise ZeroDivisionError("as if the process had been killed here")

            context.log.info = info  # type: ignore[method-assign]
        else:
            slurm.do(lambda: _finish(slurm, slurm.jobs[1]))
        run = slurm.client.run(
            context=context, command="true", options={"mem": "1G"}, on_out_of_memory=MoreMemory(attempts=1)
        )
        return run.get_materialize_result()

    result = dg.materialize([thing], instance=instance, raise_on_error=False)
    metadata = metadata_of(result)
    assert [options.mem_per_node_mib for options in asked(slurm)] == [1024, 2048]
    assert metadata["reattached"] is True
    assert [row.data["memory"] for row in metadata["attempts"].records] == ["1024M", "2048M"]


def _finish(site: DagsterSite, job: ScriptedJob) -> None:
    import asyncio

    async def end() -> None:
        await job.pipes("closed")
        await job.end()

    site.keep = asyncio.ensure_future(end())  # type: ignore[attr-defined]


def test_another_request_after_more_memory_begins_anew(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    slurm.script = ends(JobState.OUT_OF_MEMORY, JobState.NODE_FAIL, JobState.COMPLETED)

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        run = slurm.client.run(
            context=context,
            command=["echo", str(context.retry_number)],
            options={"mem": "1G"},
            on_out_of_memory=MEMORY,
        )
        return run.get_materialize_result()

    assert dg.materialize([thing], instance=instance, raise_on_error=False).success
    assert [options.mem_per_node_mib for options in asked(slurm)] == [1024, 2048, 1024]


# ------------------------------------------------------------------ figures


def test_all_figures_of_a_job_with_accounting_live_use_and_facts(
    slurm: DagsterSite, instance: dg.DagsterInstance
) -> None:
    step = AccountingStep(
        step="0",
        name="train",
        state="COMPLETED",
        elapsed=10.0,
        tasks=2,
        nodes=2,
        alloc_cpus=4,
        cpu_seconds=30.0,
        max_rss=GIB,
        ave_rss=GIB // 2,
        gpu_percent=80.0,
    )
    accounting = Accounting(
        state="COMPLETED",
        exit_code=0,
        signal=0,
        elapsed=10.0,
        cpu_seconds=30.0,
        alloc_cpus=4,
        max_rss=GIB,
        alloc_nodes=2,
        alloc_tres="billing=4,cpu=4,mem=4G,node=2,gres/gpu=2,gres/gpu:a100=2",
        used=Used(disk_read=1, disk_written=2, energy_joules=36000.0, gpu_memory=3 * GIB, gpu_percent=80.0),
        steps=(step,),
        steps_in_all=1,
    )
    live = Live(at=1004.0, node="c1", cpus=2, cpu_seconds=9.0, cpu_percent=90.0, rss=GIB, peak_rss=2 * GIB, processes=3)

    async def script(job: ScriptedJob) -> None:
        await job.begin()
        last = job.starts[-1]
        facts = {"ray_dashboard": "http://c1:8265", "workers": "2 of 2", "state": "not ours to say"}
        job.starts[-1] = type(last)(
            number=0, job_id=100, node="c1", nonce="n0", started_at=1003.0, live=live, facts=facts
        )
        await job.state(JobState.RUNNING, nodes=2)
        kept = job.starts[-1]
        job._end_start(ended_at=1005.0, exit_code=0, live=kept.live, facts=kept.facts)
        await job.state(JobState.COMPLETED, end_time=1013.0, nodes=2, alloc_cpus=4)
        await job.state(JobState.COMPLETED, accounting=accounting)

    slurm.script = script
    result = materialized(slurm, instance, options={"ntasks": 2, "nodes": 2, "gpus_per_node": "1", "time_limit": 1})
    metadata = metadata_of(result)
    assert metadata["state"] == "COMPLETED"
    assert metadata["ray_dashboard"] == "http://c1:8265"
    shown = result.asset_materializations_for_node("thing")[0].metadata
    assert isinstance(shown["slurmbus/ray_dashboard"], dg.UrlMetadataValue)
    assert isinstance(shown["slurmbus/workers"], dg.TextMetadataValue)
    # While it ran the address could be clicked, too.
    (observation,) = result.asset_observations_for_node("thing")
    assert observation.metadata["slurmbus/ray_dashboard"] == dg.MetadataValue.url("http://c1:8265")
    assert observation.metadata["slurmbus/job_id"].value == 100
    assert observation.partition is None
    expected = {
        "cpu_efficiency": 0.75,
        "cpu_seconds": 30.0,
        "core_hours": 40 / 3600,
        "node_hours": 20 / 3600,
        "memory_allocated_bytes": 4 * GIB,
        "memory_efficiency": 0.5,  # by what its first node was seen to hold
        "peak_memory_bytes": GIB,
        "first_node": "c1",
        "first_node_peak_memory_bytes": 2 * GIB,
        "gpus": 2,
        "gpu_hours": 20 / 3600,
        "gpu_utilization": 0.8,
        "gpu_memory_bytes": 3 * GIB,
        "energy_joules": 36000.0,
        "disk_read_bytes": 1,
        "disk_written_bytes": 2,
        "time_limit_seconds": 60,
        "time_limit_used": 10 / 60,
    }
    assert {name: metadata[name] for name in expected} == pytest.approx(expected)
    for name in set(expected) - {"first_node"}:
        assert isinstance(shown[f"slurmbus/{name}"], dg.IntMetadataValue | dg.FloatMetadataValue)
    (row,) = metadata["steps"].records
    assert row.data == {
        "step": "0",
        "name": "train",
        "state": "COMPLETED",
        "exit code": "0:0",
        "elapsed s": 10.0,
        "nodes": 2,
        "tasks": 2,
        "CPUs": 4,
        "CPU s": 30.0,
        "CPU efficiency": 0.75,
        "max memory MiB": 1024.0,
        "mean memory MiB": 512.0,
        "GPU use %": 80.0,
    }
    lines = log_of(instance, result.run_id)
    assert "Slurm job 100: ray_dashboard: http://c1:8265" in lines
    assert any(line.startswith("Slurm job 100 uses 90 % of 2 CPUs and 1 GiB of memory") for line in lines)


@pytest.mark.parametrize(
    ("resources", "calls", "waits"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_accounting_is_waited_for_where_that_is_wanted(
    slurm: DagsterSite, instance: dg.DagsterInstance, tmp_path: Path, resources: bool, calls: bool | None, waits: bool
) -> None:
    step = AccountingStep(step="batch", name="batch", state="COMPLETED", energy_joules=7.0)
    accounting = Accounting(
        state="COMPLETED",
        exit_code=0,
        signal=0,
        elapsed=10.0,
        cpu_seconds=30.0,
        alloc_cpus=4,
        used=Used(energy_joules=7.0),
        steps=(step,),
        steps_in_all=1,
    )
    done = threading.Event()

    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.end()
        if not waits:
            await asyncio.to_thread(done.wait, 60)  # accounting has it when the step is over
        await job.state(JobState.COMPLETED, accounting=accounting)

    slurm.script = script
    payload = tmp_path / "run.sh"
    payload.write_text("true")
    compute = ComputeResource(
        mode="slurm", slurm=SlurmResource(site=SITE, bus=slurm.bus), wait_for_accounting=resources
    )

    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        run = compute.run(context=context, payload_path=payload, wait_for_accounting=calls)
        return run.get_materialize_result()

    metadata = metadata_of(dg.materialize([thing], instance=instance, raise_on_error=False))
    done.set()
    assert slurm.jobs[-1].spec.accounting_soon == waits
    assert metadata.get("energy_joules") == (7.0 if waits else None)
    assert ("steps" in metadata) == waits


async def with_a_dashboard(job: ScriptedJob) -> None:
    await job.begin()
    last = job.starts[-1]
    for page in ("http://c1:8265", "http://c1:8265", "http://c1:9999"):
        facts = {"dashboard": page, "workers": "2"}
        job.starts[-1] = type(last)(number=0, job_id=100, node="c1", nonce="n0", started_at=1003.0, facts=facts)
        await job.state(JobState.RUNNING)
    await job.pipes("opened", extras={})
    await job.pipes("closed")
    await job.end()


def test_each_address_is_observed_once_for_each_asset_and_for_its_partition(
    slurm: DagsterSite, instance: dg.DagsterInstance
) -> None:
    slurm.script = with_a_dashboard
    days = dg.StaticPartitionsDefinition(["monday", "tuesday"])

    @dg.multi_asset(specs=[dg.AssetSpec("one", partitions_def=days), dg.AssetSpec("two", partitions_def=days)])
    def both(context: dg.AssetExecutionContext):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return slurm.client.run(context=context, command="true").get_results()

    result = dg.materialize([both], instance=instance, partition_key="tuesday")
    assert result.success
    seen = [
        (one.asset_key.to_user_string(), one.partition, one.metadata["slurmbus/dashboard"].value)
        for one in result.asset_observations_for_node("both")
    ]
    pages = ("http://c1:8265", "http://c1:9999")
    assert seen == [(name, "tuesday", page) for page in pages for name in ("one", "two")]


def test_an_op_without_assets_and_an_observation_that_cant_be_made_fail_nothing(
    slurm: DagsterSite, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.script = with_a_dashboard

    @dg.op
    def plain(context: dg.OpExecutionContext) -> None:
        slurm.client.run(context=context, command="true")

    @dg.job
    def only_ops() -> None:
        plain()

    result = only_ops.execute_in_process(instance=instance)
    assert result.success
    assert result.asset_observations_for_node("plain") == []

    def broken(*_: Any) -> Any:
        raise RuntimeError("the event log is full")

    monkeypatch.setattr(dg.OpExecutionContext, "log_event", broken)
    told = [line for line in log_of(instance, materialized(slurm, instance).run_id) if "can't be observed" in line]
    assert told == ["the job's addresses can't be observed: the event log is full"] * 2


def test_a_bus_that_is_away_after_the_end_fails_no_finished_job(
    slurm: DagsterSite, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slurmbus.client import SiteClient
    from slurmbus_protocol.errors import BusUnreachable

    def away(*_: Any) -> Any:
        raise BusUnreachable("no connection")

    monkeypatch.setattr(SiteClient, "wait_for_accounting", away)
    result = materialized(slurm, instance, options={"ntasks": 2})
    assert metadata_of(result)["state"] == "COMPLETED"
    assert any("accounting's figures of job" in line for line in log_of(instance, result.run_id))


# ------------------------------------------------------------------ own metrics


def test_own_metrics_of_a_finished_job(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    def own(job: FinishedJob) -> dict[str, Any]:
        assert job.record.state is JobState.COMPLETED
        return {
            "euros": 0.05 * float(str(job.metadata["slurmbus/node_hours"].value)),
            "report": dg.MetadataValue.url("https://example.org/report"),
            "slurmbus/state": "mine",
        }

    metadata = metadata_of(materialized(slurm, instance, metrics=own))
    assert metadata["euros"] > 0
    assert metadata["report"] == "https://example.org/report"
    assert metadata["state"] == "mine"


@pytest.mark.parametrize("given", [None, 7, {"bad": object()}, {1: 2}])
def test_own_metrics_that_cant_be_used_fail_nothing(
    slurm: DagsterSite, instance: dg.DagsterInstance, given: Any
) -> None:
    result = materialized(slurm, instance, metrics=lambda _: given)
    assert metadata_of(result)["state"] == "COMPLETED"
    assert [line for line in log_of(instance, result.run_id) if line.startswith("metrics= raised")]


def test_own_metrics_that_raise_fail_nothing(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    def own(_: FinishedJob) -> dict[str, Any]:
        raise RuntimeError("no price list")

    result = materialized(slurm, instance, metrics=own)
    assert metadata_of(result)["state"] == "COMPLETED"
    (told,) = [line for line in log_of(instance, result.run_id) if line.startswith("metrics=")]
    assert told.startswith("metrics= raised RuntimeError: no price list; the job has succeeded")
    assert json.dumps(told)
