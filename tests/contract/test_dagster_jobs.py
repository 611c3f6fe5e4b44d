"""Dagster assets against a real bus and an agent that does what a script tells it to."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import dagster as dg
import dagster_pipes
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

from contract.bus_site import SITE
from contract.scripted_jobs import (
    DagsterSite,
    ScriptedJob,
    failure_of,
    handles_of,
    log_of,
    output_of,
    succeed,
)
from dagster_slurmbus import (
    BashLauncher,
    ComputeResource,
    ExecutionMode,
    PipesSlurmClient,
    SlurmQueueConfig,
    SlurmResource,
    SlurmRunConfig,
)
from dagster_slurmbus.reattach import request_hash, request_parts
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)


@pytest.fixture
def site(slurm: DagsterSite) -> DagsterSite:
    return slurm


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------ the two blocks of the manual


def test_the_drop_in_for_pipes_subprocess_client(
    site: DagsterSite, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    here = tmp_path / "defs.py"
    (tmp_path / "features.py").write_text("print(1)")

    @dg.asset(kinds={"slurm"})
    def features(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return slurm.run(
            context=context,
            command=["python3", "features.py"],
            files=[dg.file_relative_path(str(here), "features.py")],
            outputs=["plot.png"],
            env={"YEAR": "2026"},
            extras={"a": 1},
        ).get_materialize_result()

    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        await job.pipes("log", message="working", level="INFO")
        await job.write(Stream.STDOUT, b"line 1\ncut \xc3")
        await job.write(Stream.STDOUT, b"\xa9 invalid \xff\n")
        await job.write(Stream.STDERR, b"a warning\n")
        await job.materialize("features", rows=10)
        await job.pipes("closed")
        await job.end(outputs=(await job.output("plot.png", b"PNG"),))

    site.script = script
    result = dg.materialize([features], resources={"slurm": site.client}, instance=instance)

    spec = site.jobs[0].spec
    assert spec.name == "features"
    assert spec.plan.argv == ("python3", "features.py")
    assert [(file.path, file.sha256) for file in spec.files] == [("features.py", sha256("print(1)"))]
    assert spec.outputs == ("plot.png",)
    assert spec.env == {"PYTHONUNBUFFERED": "1", "YEAR": "2026"}
    assert spec.pipes_module is not None
    assert spec.pipes_module.path == "dagster_pipes.py"
    assert spec.pipes_module.sha256 == sha256(Path(dagster_pipes.__file__).read_text())
    context_data = json.loads(spec.pipes_context or b"")
    assert (context_data["extras"], context_data["asset_keys"]) == ({"a": 1}, ["features"])
    assert spec.labels["dagster_run"] == result.run_id

    (materialization,) = result.asset_materializations_for_node("features")
    metadata = {name.removeprefix("slurmbus/"): value.value for name, value in materialization.metadata.items()}
    assert metadata["rows"] == 10
    assert metadata["job_id"] == 100
    assert metadata["queue_wait_seconds"] == 3.0
    assert metadata["cpu_efficiency"] == 0.25
    assert metadata["peak_memory_bytes"] == 1024**2
    assert metadata["files_sha256"] == {"features.py": sha256("print(1)")}
    assert metadata["versions"]["agent"] == "0.1.0-scripted"
    plot = Path(metadata["output/plot.png"])
    assert plot.read_bytes() == b"PNG"
    assert plot.is_relative_to(instance.root_directory)
    assert result.run_id in plot.parts

    out, err = output_of(result, instance)
    assert b"line 1\ncut \xc3\xa9 invalid \xff\n" in out
    assert b"a warning" in err  # its newline may come as a piece of its own, behind a line of Dagster's
    lines = log_of(instance, result.run_id)
    assert "working" in lines
    assert not any("line 1" in line or "a warning" in line for line in lines)
    states = [line for line in lines if line.startswith(("Slurm job 100 is", "job 0"))]
    assert states[-3:] == [
        "Slurm job 100 is PENDING",
        "Slurm job 100 is RUNNING on c1",
        "Slurm job 100 is COMPLETED on c1",
    ]


def test_the_papers_example_without_the_ssh(site: DagsterSite, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    here = tmp_path / "defs.py"
    (tmp_path / "train.py").write_text("print(2)")
    compute = ComputeResource(
        mode=ExecutionMode.SLURM,
        slurm=SlurmResource(
            bus=site.bus,
            site=SITE,
            queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=2, mem="1G"),
            remote_base="/home/alice/dagster_runs",
        ),
        default_launcher=BashLauncher(),
    )

    @dg.asset(required_resource_keys={"compute"})
    def train_model(context: dg.AssetExecutionContext):  # type: ignore[no-untyped-def]  # noqa: ANN202
        completed = context.resources.compute.run(
            context=context,
            payload_path=dg.file_relative_path(str(here), "train.py"),
            extra_env={"EXPERIMENT": context.run.run_id},
        )
        yield from completed.get_results()

    result = dg.materialize([train_model], resources={"compute": compute}, instance=instance)

    spec = site.jobs[0].spec
    assert spec.plan.argv == ("python3", "train.py")
    assert spec.options == JobOptions(partition="main", time_limit_minutes=10, cpus_per_task=2, mem_per_node_mib=1024)
    assert spec.work_base == "/home/alice/dagster_runs"
    assert spec.env["EXPERIMENT"] == result.run_id
    (materialization,) = result.asset_materializations_for_node("train_model")  # though the payload reported none
    assert materialization.metadata["slurmbus/job_id"].value == 100


def test_options_of_one_run_come_from_the_launchpad(site: DagsterSite, tmp_path: Path) -> None:
    payload = tmp_path / "run.sh"
    payload.write_text("true")
    compute = ComputeResource(
        mode="slurm", slurm=SlurmResource(site=SITE, bus=site.bus, queue=SlurmQueueConfig(partition="main", cpus=2))
    )

    @dg.asset(required_resource_keys={"compute"})
    def train(context: dg.AssetExecutionContext, config: SlurmRunConfig):  # type: ignore[no-untyped-def]  # noqa: ANN202
        run = context.resources.compute.run(context=context, payload_path=payload, options=config, payload_args=["-v"])
        yield from run.get_results()

    result = dg.materialize(
        [train],
        resources={"compute": compute},
        run_config={"ops": {"train": {"config": {"cpus": 8, "time_limit": "1:00:00"}}}},
    )
    assert result.success
    assert site.jobs[0].spec.options == JobOptions(partition="main", cpus_per_task=8, time_limit_minutes=60)
    assert site.jobs[0].spec.plan.argv == ("bash", "-euo", "pipefail", "run.sh", "-v")


# ------------------------------------------------------------------ results


def run_once(client: PipesSlurmClient, instance: dg.DagsterInstance | None = None, **options: Any) -> Any:
    """Materialise one asset whose payload is whatever the site's script does."""

    @dg.asset(retry_policy=options.pop("retry_policy", None), check_specs=options.pop("check_specs", None))
    def thing(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return slurm.run(context=context, command="true", **options).get_materialize_result()

    return dg.materialize([thing], resources={"slurm": client}, instance=instance, raise_on_error=False)


def test_only_the_last_start_has_results_and_every_start_has_logs(
    site: DagsterSite, instance: dg.DagsterInstance
) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        await job.write(Stream.STDOUT, b"first start\n")
        await job.materialize("thing", start=0)
        await job.requeue()
        await job.pipes("opened", extras={})
        await job.write(Stream.STDOUT, b"second start\n")
        await job.materialize("thing", start=1)
        await job.pipes("closed")
        await job.end()

    site.script = script
    result = run_once(site.client, instance)
    (materialization,) = result.asset_materializations_for_node("thing")
    assert materialization.metadata["start"].value == 1
    assert materialization.metadata["slurmbus/starts"].value == 2
    out, _ = output_of(result, instance)
    assert b"first start\n" in out
    assert b"second start\n" in out
    assert "Slurm job 100 is RUNNING on c1, start 2" in log_of(instance, result.run_id)


def test_many_and_large_messages_arrive_once_and_in_order(site: DagsterSite) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        for number in range(300):
            await job.pipes("report_custom_message", payload={"number": number, "text": "x" * 60_000})
        await job.pipes("report_custom_message", payload={"number": 300, "text": "y" * 5_000_000})
        await job.pipes("closed")
        await job.end()

    site.script = script
    numbers: list[tuple[int, int]] = []

    @dg.op
    def collect(context: dg.OpExecutionContext, slurm: PipesSlurmClient) -> None:
        messages = slurm.run(context=context, command="true").get_custom_messages()
        numbers.extend((message["number"], len(message["text"])) for message in messages)

    @dg.job(resource_defs={"slurm": dg.ResourceDefinition.hardcoded_resource(site.client)})
    def collecting() -> None:
        collect()

    assert collecting.execute_in_process().success
    assert numbers == [(number, 60_000) for number in range(300)] + [(300, 5_000_000)]


def test_asset_checks_travel_too(site: DagsterSite) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        await job.pipes(
            "report_asset_check", asset_key="thing", check_name="fine", passed=True, severity="ERROR", metadata={}
        )
        await job.pipes("closed")
        await job.end()

    site.script = script
    result = run_once(site.client, check_specs=[dg.AssetCheckSpec("fine", asset="thing")])
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.passed
    assert evaluation.metadata["slurmbus/job_id"].value == 100


def test_a_check_of_its_own_may_be_a_job(site: DagsterSite) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        result = {"asset_key": "thing", "check_name": "looks_right", "passed": True, "severity": "WARN", "metadata": {}}
        await job.pipes("report_asset_check", **result)
        await job.pipes("closed")
        await job.end()

    site.script = script

    @dg.asset
    def thing() -> None: ...

    @dg.asset_check(asset=thing)
    def looks_right(context: dg.AssetCheckExecutionContext, slurm: PipesSlurmClient) -> dg.AssetCheckResult:
        return slurm.run(context=context, command="true").get_asset_check_result()

    result = dg.materialize([thing, looks_right], resources={"slurm": site.client})
    assert [evaluation.passed for evaluation in result.get_asset_check_evaluations()] == [True]


def test_outputs_that_did_not_come_back_are_a_warning(
    site: DagsterSite, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.begin()
        got = await job.output("a/b.txt", b"B")
        await job.end(outputs=(got,), outputs_error="'c.txt' isn't in the working directory")

    site.script = script
    result = run_once(site.client, instance, outputs=["a/b.txt", "c.txt"], outputs_dir=tmp_path / "mine")
    assert result.success
    assert (tmp_path / "mine" / "a" / "b.txt").read_bytes() == b"B"
    assert any("'c.txt' isn't in the working directory" in line for line in log_of(instance, result.run_id))


def test_a_step_that_only_wants_the_job(site: DagsterSite) -> None:
    with dg.build_asset_context() as context:

        @dg.asset
        def alone(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
            completed = site.client.run(context=context, command="true", ship_pipes_module=False)
            assert completed.record.state is JobState.COMPLETED
            assert completed.outputs == {}
            assert completed.metadata["slurmbus/job_id"].value == 100
            return completed.get_materialize_result()

        assert alone(context).asset_key == dg.AssetKey("alone")
    assert site.jobs[0].spec.pipes_module is None
    assert site.jobs[0].spec.name == "alone"


# ------------------------------------------------------------------ two calls, and their handles


def test_two_calls_in_one_step_are_two_jobs_each_found_again(site: DagsterSite, instance: dg.DagsterInstance) -> None:
    @dg.asset
    def twice(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
        slurm.run(context=context, command="echo one")
        return slurm.run(context=context, command="echo two").get_materialize_result()

    result = dg.materialize([twice], resources={"slurm": site.client}, instance=instance)
    keys = [job.submit.key for job in site.jobs]
    handles = handles_of(instance, result.run_id)
    assert [handle.external_run_id for handle in handles] == keys
    assert [handle.client_name for handle in handles] == ["slurmbus:0", "slurmbus:1"]
    assert [handle.extras["site"] for handle in handles] == [SITE, SITE]
    assert [handle.extras["request"] for handle in handles] == [
        request_hash(request_parts(job.spec, result.run_id, {})) for job in site.jobs
    ]
    for handle, job in zip(handles, site.jobs, strict=True):
        assert handle.launched_at <= job.seen_at


def test_two_calls_may_not_have_the_same_name(site: DagsterSite) -> None:
    @dg.asset
    def twice(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
        slurm.run(context=context, command="echo one", reattach_key="it")
        return slurm.run(context=context, command="echo two", reattach_key="it").get_materialize_result()

    words, _ = failure_of(dg.materialize([twice], resources={"slurm": site.client}, raise_on_error=False))
    assert words == "reattach_key='it' was given to two calls of this step; give each its own"
    assert len(site.jobs) == 1


def test_calls_may_come_from_several_threads(site: DagsterSite) -> None:
    @dg.op
    def fan_out(context: dg.OpExecutionContext, slurm: PipesSlurmClient) -> None:
        done: list[int] = []

        def one() -> None:
            done.append(slurm.run(context=context, command="true").record.job_id or 0)

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(done) == [100, 101, 102, 103]

    @dg.job(resource_defs={"slurm": dg.ResourceDefinition.hardcoded_resource(site.client)})
    def fanning() -> None:
        fan_out()

    assert fanning.execute_in_process().success


# ------------------------------------------------------------------ failures


def test_a_failed_payload_explains_itself(site: DagsterSite) -> None:
    exception = {
        "message": "ValueError: no data\n",
        "stack": ['  File "x.py", line 3, in f\n'],
        "name": "ValueError",
        "cause": None,
        "context": None,
    }

    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        await job.write(Stream.STDERR, b"".join(b"line %d\n" % number for number in range(100)))
        await job.pipes("closed", exception=exception)
        await job.end(JobState.FAILED, exit_code=1, reason="NonZeroExitCode")

    site.script = script
    words, metadata = failure_of(run_once(site.client))
    assert words == (
        "Slurm job 100: the payload ended with exit code 1 on c1 after 2.0 s. Its last words: ValueError: no data"
    )
    assert metadata["stderr_tail"].splitlines() == [f"line {number}" for number in range(50, 100)]
    assert metadata["exit_code"] == 1
    assert metadata["spool"] == f"/spool/{site.jobs[0].submit.key}"
    assert metadata["node_list"] == "c1"
    assert "line 3, in f" in metadata["payload_exception"]


def test_a_job_that_slurm_refuses_says_so_in_slurms_words(site: DagsterSite) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.state(JobState.ACCEPTED)
        await job.end(JobState.REJECTED, reason="Invalid partition name specified", hint="partitions: main, gpu")

    site.script = script
    words, metadata = failure_of(run_once(site.client))
    assert words == "the job: refused: Invalid partition name specified; partitions: main, gpu"
    assert metadata["state"] == "REJECTED"


@pytest.mark.parametrize(
    ("state", "jobs", "success"),
    [(JobState.NODE_FAIL, 2, True), (JobState.PREEMPTED, 2, True), (JobState.OUT_OF_MEMORY, 1, False)],
)
def test_a_retry_policy_runs_again_only_what_may_succeed_then(
    site: DagsterSite, state: JobState, jobs: int, success: bool
) -> None:
    async def script(job: ScriptedJob) -> None:
        if len(site.jobs) > 1:
            await succeed(job)
            return
        await job.begin()
        await job.end(state, exit_code=None, signal=9)

    site.script = script
    assert run_once(site.client, retry_policy=dg.RetryPolicy(max_retries=1)).success is success
    assert len(site.jobs) == jobs


def test_lost_pipes_messages_fail_the_step(site: DagsterSite) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.begin()
        job.sizes[Stream.MESSAGES] = 100
        await job.end()

    site.script = script
    words, metadata = failure_of(run_once(site.client))
    assert "100 bytes of Pipes messages" in words
    assert metadata["key"] == site.jobs[0].submit.key


def test_extras_that_are_not_json_are_refused_before_anything_is_submitted(site: DagsterSite) -> None:
    words, _ = failure_of(run_once(site.client, extras={"when": {1, 2}}))
    assert words.startswith("extras must be JSON")
    assert site.jobs == []


def test_a_site_that_this_machine_does_not_know_is_named(site: DagsterSite) -> None:
    words, _ = failure_of(run_once(PipesSlurmClient(site="nowhere", bus=site.bus)))
    assert "nowhere" in words
    assert "slurmbus sites" in words


def test_bad_messages_are_warnings_and_the_step_goes_on(site: DagsterSite, instance: dg.DagsterInstance) -> None:
    async def script(job: ScriptedJob) -> None:
        await job.begin()
        await job.pipes("opened", extras={})
        await job.write(Stream.MESSAGES, b"not json at all\n")
        await job.pipes("log", message="odd", level="NOTICE")
        await job.pipes("dance")
        await job.pipes("closed")
        await job.end()

    site.script = script
    result = run_once(site.client, instance)
    assert result.success
    lines = log_of(instance, result.run_id)
    assert "[NOTICE] odd" in lines
    assert any("isn't JSON" in line for line in lines)
    assert any("unknown method 'dance'" in line for line in lines)


# ------------------------------------------------------------------ step processes


DEFINITIONS = """
import dagster as dg
from dagster_slurmbus import BusResource, PipesSlurmClient

def client():
    return PipesSlurmClient(site="{site}", bus=BusResource.from_env())

@dg.asset
def first(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    return slurm.run(context=context, command="true").get_materialize_result()

@dg.asset
def second(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    return slurm.run(context=context, command="true").get_materialize_result()

defs = dg.Definitions(
    assets=[first, second],
    jobs=[dg.define_asset_job("both")],
    resources={{"slurm": client()}},
)
both = defs.resolve_job_def("both")
"""


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_step_processes_connect_by_themselves(
    site: DagsterSite, tmp_path: Path, start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions = tmp_path / "definitions.py"
    definitions.write_text(DEFINITIONS.format(site=SITE))
    monkeypatch.setenv("SLURMBUS_HOME", str(site.home.path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    config = {"execution": {"config": {"multiprocess": {"start_method": {start_method: {}}, "max_concurrent": 2}}}}
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        job = ReconstructableJob.for_file(str(definitions), "both")
        with dg.execute_job(job, instance=instance, run_config=config) as result:
            assert result.success
    assert len({job.submit.key for job in site.jobs}) == 2
