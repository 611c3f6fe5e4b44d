"""Local mode for real: the manual's two blocks, failures, and a terminated run, with the helper and its own agent."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest

from contract.authority_site import holders
from contract.bus_site import wait_until
from contract.scripted_jobs import failure_of, log_of, output_of
from dagster_slurmbus import BashLauncher, ComputeResource, PipesSlurmClient, SlurmQueueConfig, SlurmResource
from dagster_slurmbus.bus import local_client
from slurmbus.home import Home
from slurmbus.local import stop_local
from slurmbus_protocol.states import JobState

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)

DEFINITIONS = """
import dagster as dg

from dagster_slurmbus import PipesSlurmClient          # a drop-in for PipesSubprocessClient

@dg.asset(kinds={"slurm"})
def features(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    return slurm.run(context=context, command=["python3", "features.py"],
                     files=[dg.file_relative_path(__file__, "features.py")], outputs=["plot.png"],
                     env={"YEAR": "2026"}, extras={"a": 1}).get_materialize_result()

from dagster_slurmbus import BashLauncher, BusResource, ComputeResource, ExecutionMode, SlurmQueueConfig, SlurmResource

compute = ComputeResource(
    mode=ExecutionMode.LOCAL,
    slurm=SlurmResource(
        bus=BusResource.from_env(prefix="SLURMBUS"), site="leonardo-alice",
        queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=2, mem="1G"),
        remote_base="/home/alice/dagster_runs",
    ),
    default_launcher=BashLauncher(),
)

@dg.asset(required_resource_keys={"compute"})
def train_model(context: dg.AssetExecutionContext):
    completed = context.resources.compute.run(
        context=context, payload_path=dg.file_relative_path(__file__, "train.py"),
        extra_env={"EXPERIMENT": context.run.run_id},
    )
    yield from completed.get_results()

@dg.asset
def endless(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    return slurm.run(context=context, command=["sleep", "1000"]).get_materialize_result()

terminated = dg.Definitions(
    assets=[endless], jobs=[dg.define_asset_job("terminated")], resources={"slurm": PipesSlurmClient.local()}
).resolve_job_def("terminated")
"""

FEATURES = """
import os, sys
from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    print("in the year", os.environ["YEAR"])
    sys.stdout.buffer.write(b"caf\\xe9\\n")
    print("to stderr", file=sys.stderr)
    pipes.log.info(f"extras {pipes.extras}")
    with open("plot.png", "wb") as plot:
        plot.write(b"PNG")
    pipes.report_asset_materialization(metadata={"rows": 10})
"""

TERMINATED = """
import sys
import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob

if __name__ == "__main__":
    with dg.DagsterInstance.from_config(sys.argv[2]) as instance:
        job = ReconstructableJob.for_file(sys.argv[1], "terminated")
        with dg.execute_job(job, instance=instance, run_config={"execution": {"config": {sys.argv[3]: {}}}}):
            pass
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("local") / "slurmbus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURMBUS_HOME", str(home))
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        yield home
        client = local_client(home)
        for record in client.records():
            if not record.state.is_final:  # only when a test has failed
                client.cancel(record.key)
                with client.follow(record.key, streams=False) as events:
                    list(events)
        client.connection.close()
        stop_local(Home(home))


@pytest.fixture
def definitions(home: Path, tmp_path: Path) -> ModuleType:
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "features.py").write_text(FEATURES)
    (tmp_path / "train.py").write_text("import os; print('experiment', os.environ['EXPERIMENT'])")
    spec = importlib.util.spec_from_file_location("slurmbus_definitions", tmp_path / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_blocks_of_the_manual_on_a_laptop(definitions: ModuleType, instance: dg.DagsterInstance) -> None:
    result = dg.materialize(
        [definitions.features, definitions.train_model],
        resources={"slurm": PipesSlurmClient.local(), "compute": definitions.compute},
        instance=instance,
    )
    (features,) = result.asset_materializations_for_node("features")
    metadata = {name.removeprefix("slurmbus/"): value.value for name, value in features.metadata.items()}
    assert metadata["rows"] == 10
    assert metadata["state"] == "COMPLETED"
    assert metadata["versions"]["agent"]
    assert Path(metadata["output/plot.png"]).read_bytes() == b"PNG"
    for figure in ("elapsed_seconds", "cpu_efficiency", "node_hours", "queue_wait_seconds"):
        assert isinstance(metadata[figure], float)
        assert metadata[figure] >= 0
    assert metadata["peak_memory_bytes"] > 1_000_000
    (train,) = result.asset_materializations_for_node("train_model")
    assert train.metadata["slurmbus/cpus"].value == 2
    out, err = output_of(result, instance)
    assert b"in the year 2026\n" in out
    assert b"caf\xe9\n" in out
    assert b"to stderr" in err  # its newline may come as a piece of its own, behind a line of Dagster's
    assert f"experiment {result.run_id}\n".encode() in out
    assert "extras {'a': 1}" in log_of(instance, result.run_id)


def run_payload(payload: Path, instance: dg.DagsterInstance | None = None, **options: Any) -> dg.ExecuteInProcessResult:
    compute = ComputeResource(default_launcher=options.pop("launcher", None))

    @dg.asset(required_resource_keys={"compute"})
    def thing(context: dg.AssetExecutionContext):  # type: ignore[no-untyped-def]  # noqa: ANN202
        yield from context.resources.compute.run(context=context, payload_path=payload, **options).get_results()

    return dg.materialize([thing], resources={"compute": compute}, instance=instance, raise_on_error=False)


@pytest.mark.usefixtures("home")
def test_a_payload_runs_in_another_folder_and_is_found_there(tmp_path: Path) -> None:
    """Alone and as an array; what came along and what goes back stay in each job's own folder."""
    data = tmp_path / "the data"
    data.mkdir()
    (data / "values.txt").write_text("41")
    (tmp_path / "helper.py").write_text("def more(number): return number + 1")
    payload = tmp_path / "sum.py"
    payload.write_text(
        "import os, sys, helper, pathlib\n"
        "found = helper.more(int(open('values.txt').read()))\n"
        "out = pathlib.Path(os.environ['SLURMBUS_WORK_DIR'], 'sum.txt')\n"
        "out.write_text(f'{found} {os.getcwd()} {sys.argv[1:]} {out.parent == pathlib.Path(__file__).parent}')\n"
    )
    texts: list[str] = []

    @dg.asset(required_resource_keys={"compute"})
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        call = {"payload_path": payload, "extra_files": [tmp_path / "helper.py"], "outputs": ["sum.txt"]}
        compute = context.resources.compute
        alone = compute.run(context=context, cwd=str(data), payload_args=["alone"], **call)
        array = compute.run_array(context=context, tasks=["one", "two"], options={"chdir": str(data)}, **call)
        texts.extend(one.outputs["sum.txt"].read_text() for one in (alone, *array))
        result: dg.MaterializeResult[Any] = array.get_materialize_result()
        return result

    queue = SlurmQueueConfig(cwd="/a/folder/of/the/site")
    compute = ComputeResource(slurm=SlurmResource(site="alpha", queue=queue))
    result = dg.materialize([thing], resources={"compute": compute}, raise_on_error=False)
    assert result.success, failure_of(result)
    assert texts == [f"42 {data} {[name]} True" for name in ("alone", "one", "two")]


@pytest.mark.usefixtures("home")
def test_payload_extra_files_arguments_and_preamble(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    payload = tmp_path / "run.sh"
    payload.write_text('cat lib/data.txt; echo "$COLOUR $1"; ls -1 | wc -l')
    data = tmp_path / "data.txt"
    data.write_text("some data\n")
    result = run_payload(
        payload,
        instance,
        payload_args=["two words"],
        extra_files={"lib/data.txt": data},
        launcher=BashLauncher(preamble="export COLOUR=green"),
    )
    assert result.success
    assert b"some data\ngreen two words\n2\n" in output_of(result, instance)[0]


@pytest.mark.usefixtures("home")
def test_commands_get_the_variables_of_every_job(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = f"s3cret-{secrets.token_hex(16)}"
    monkeypatch.setenv("TOKEN", value)
    monkeypatch.setenv("OTHER_TOKEN", value)

    @dg.asset(required_resource_keys={"compute"})
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        client = context.resources.compute.pipes_client(context)
        command = ["sh", "-c", "echo data in $DATA_DIR, tokens of ${#TOKEN} and ${#OTHER_TOKEN}"]
        result: dg.MaterializeResult[Any] = client.run(
            context=context, command=command, secret_env={"OTHER_TOKEN": "own"}
        ).get_materialize_result()
        return result

    slurm = SlurmResource(site="alpha", env={"DATA_DIR": "/site"}, secret_env=["TOKEN", "OTHER_TOKEN"])
    compute = ComputeResource(local_env={"DATA_DIR": str(tmp_path)}, slurm=slurm)
    result = dg.materialize([thing], resources={"compute": compute}, instance=instance)
    out, err = output_of(result, instance)
    assert f"data in {tmp_path}, tokens of {len(value)} and 3\n".encode() in out
    assert value.encode() not in out + err
    assert holders(Path(instance.root_directory), value) == []


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("script", "words", "known"),
    [
        (
            "echo bad luck >&2; exit 3",
            "the payload ended with exit code 3",
            {"exit_code": 3, "stderr_tail": "bad luck"},
        ),
        ("no-such-command", "exit code 127", {"exit_code": 127}),
        ("kill -SEGV $$", "killed by signal 11 (SIGSEGV)", {"signal": 11}),
        ("false | true; echo not reached", "the payload ended with exit code 1", {"exit_code": 1}),
    ],
)
def test_failures_are_told_in_plain_words(tmp_path: Path, script: str, words: str, known: dict[str, Any]) -> None:
    payload = tmp_path / "run.sh"
    payload.write_text(script)
    told, metadata = failure_of(run_payload(payload))
    assert words in told
    assert metadata | known == metadata
    assert Path(metadata["spool"]).is_dir()


@pytest.mark.usefixtures("home")
def test_a_command_that_is_not_there() -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return slurm.run(context=context, command="pyhton3 features.py").get_materialize_result()

    resources = {"slurm": PipesSlurmClient.local()}
    told, _ = failure_of(dg.materialize([thing], resources=resources, raise_on_error=False))
    assert "pyhton3" in told


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_terminating_the_run_ends_the_job(
    home: Path, definitions: ModuleType, instance: dg.DagsterInstance, tmp_path: Path, executor: str
) -> None:
    script = tmp_path / "terminated.py"
    script.write_text(TERMINATED)
    client = local_client(home)
    before = {record.key for record in client.records()}

    def running() -> list[str]:
        found = client.records()
        return [record.key for record in found if record.key not in before and record.state is JobState.RUNNING]

    (tmp_path / "dagster.yaml").write_text("")
    run = subprocess.Popen([sys.executable, str(script), str(definitions.__file__), str(tmp_path), executor])
    try:
        wait_until(running, "the job to run", 60)
        (key,) = running()
        (dagster_run,) = instance.get_runs()
        instance.report_run_canceling(dagster_run)
        os.kill(run.pid, signal.SIGTERM)
        run.wait(60)
    finally:
        run.kill()
        run.wait()
    record = client.record(key)
    assert record is not None
    assert record.state is JobState.CANCELLED
    assert record.cancel is not None
    assert dagster_run.run_id in record.cancel.reason
    ended = instance.get_run_by_id(dagster_run.run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.CANCELED
