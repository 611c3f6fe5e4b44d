"""Dagster on the real cluster: results, figures, messages, failures and Terminate as people see them."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest

from contract.bus_site import wait_until
from contract.scripted_jobs import failure_of, handles_of, log_of, output_of
from dagster_slurmbus import ComputeResource, PipesSlurmClient, SlurmResource
from dagster_slurmbus.outcomes import CompletedJob
from integration.conftest import SITES
from slurmbus.client import SiteClient
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

pytestmark = [
    pytest.mark.usefixtures("environment"),
    pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
        "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
    ),
]

SITE = SITES["alice"]
PLOT = bytes(range(256)) * 4096
GIB = 1024**3

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


@pytest.fixture
def environment(home: Home, alice: SiteClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user of this machine has set, while Alice's agent runs."""
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def definitions(payloads: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("slurmbus_cluster_definitions", payloads / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Ran:
    """What became of an asset that ran jobs."""

    def __init__(
        self, use: Callable[[dg.AssetExecutionContext, PipesSlurmClient], CompletedJob], instance: dg.DagsterInstance
    ) -> None:
        completed: list[CompletedJob] = []

        @dg.asset
        def thing(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
            completed.append(use(context, slurm))
            return completed[0].get_materialize_result()

        resources = {"slurm": PipesSlurmClient(site=SITE)}
        self.result = dg.materialize([thing], resources=resources, instance=instance, raise_on_error=False)
        self._completed = completed

    @property
    def completed(self) -> CompletedJob:
        assert self.result.success, failure_of(self.result)
        return self._completed[0]


def run_job(instance: dg.DagsterInstance, **arguments: Any) -> Ran:
    return Ran(lambda context, slurm: slurm.run(context=context, **arguments), instance)


def metadata_of(result: dg.ExecuteInProcessResult, node: str) -> dict[str, Any]:
    (materialization,) = result.asset_materializations_for_node(node)
    return {name.removeprefix("slurmbus/"): value.value for name, value in materialization.metadata.items()}


def rows_of(cluster: Cluster, job_id: int) -> list[dict[str, str]]:
    """Give accounting's rows: the job's, then its steps'; accounting is told a moment after the job's end."""
    rows: list[dict[str, str]] = []

    def are_final() -> bool:
        rows[:] = cluster.accounting(job_id)
        return bool(rows) and all(row["End"] not in {"", "Unknown"} for row in rows)

    wait_until(are_final, f"accounting of job {job_id}")
    return rows


def seconds(text: str) -> float:
    """Read sacct's days-hours:minutes:seconds."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total + 86400 * int(days or 0)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def head(folder: Path) -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def as_the_cluster_says(cluster: Cluster, metadata: dict[str, Any]) -> dict[str, str]:
    """Compare a success's figures with those of the controller and of accounting; give accounting's row of the job."""
    row = rows_of(cluster, metadata["job_id"])[0]
    shown: Any = cluster.job(metadata["job_id"])
    for name in ("submit_time", "start_time", "end_time"):
        assert metadata[name] == shown[name]["number"], name
    assert metadata["queue_wait_seconds"] == shown["start_time"]["number"] - shown["submit_time"]["number"]
    assert metadata["state"] == row["State"] == "COMPLETED"
    assert metadata["partition"] == row["Partition"]
    assert metadata["node_list"] == row["NodeList"]
    resources = dict(pair.split("=") for pair in row["AllocTRES"].split(","))
    assert (metadata["nodes"], metadata["cpus"]) == (int(resources["node"]), int(resources["cpu"]))
    assert metadata["elapsed_seconds"] == pytest.approx(seconds(row["Elapsed"]), abs=2)
    assert metadata["node_hours"] == pytest.approx(metadata["nodes"] * metadata["elapsed_seconds"] / 3600)
    return row


def test_both_blocks_of_the_manual_on_the_cluster(
    definitions: ModuleType,
    instance: dg.DagsterInstance,
    cluster: Cluster,
    payloads: Path,
) -> None:
    result = dg.materialize(
        [definitions.features, definitions.train_model],
        resources={"slurm": PipesSlurmClient(site=SITE), "compute": definitions.compute},
        instance=instance,
    )
    features, train = metadata_of(result, "features"), metadata_of(result, "train_model")

    row = as_the_cluster_says(cluster, features)
    assert row["JobName"] == f"features.{features['key']}"
    assert row["User"] == features["user"] == "alice"
    assert features["rows"] == 10
    assert Path(features["output/plot.png"]).read_bytes() == PLOT
    assert features["files_sha256"] == {"features.py": sha256(payloads / "features.py")}
    stdout, stderr = output_of(result, instance)
    assert stdout == b"in the year 2026\ncaf\xe9\n" + f"experiment {result.run_id}\n".encode()
    assert stderr.count(b"to stderr") == 1  # between the lines of Dagster's own log

    row = as_the_cluster_says(cluster, train)
    assert (row["Partition"], row["ReqMem"]) == ("main", "1024M")
    assert train["cpus"] == 2
    assert train["folder"].startswith("/home/alice/dagster_runs/")
    assert train["bytes"] < train["peak_memory_bytes"] < GIB
    assert train["elapsed_seconds"] > 2
    used = train["cpu_efficiency"] * train["cpus"] * train["elapsed_seconds"]
    assert used == pytest.approx(seconds(row["TotalCPU"]), abs=1)
    assert 2 < used < 5
    assert train["files_sha256"] == {"train.py": sha256(payloads / "train.py")}

    for metadata in (features, train):
        assert metadata["site"] == SITE
        assert metadata.get("git_commit") == head(payloads)
        assert set(metadata["versions"]) >= {"agent", "dagster", "dagster-slurmbus", "slurmbus-protocol"}
    assert features["job_id"] != train["job_id"]

    lines = log_of(instance, result.run_id)
    assert "extras {'a': 1}" in lines
    assert not any("in the year" in line or "to stderr" in line for line in lines)
    for metadata in (features, train):
        name = f"Slurm job {metadata['job_id']} is"
        assert f"{name} RUNNING on {metadata['node_list']}" in lines
        assert f"{name} COMPLETED on {metadata['node_list']}" in lines


def test_every_message_and_every_line_arrives_once_and_in_order(instance: dg.DagsterInstance, payloads: Path) -> None:
    count, size, big, lines = 1_500, 60_000, 5_000_000, 200_000
    ran = run_job(
        instance,
        command=["python3", "talkative.py", *map(str, (count, size, big, lines))],
        files=[payloads / "talkative.py"],
    )
    messages = ran.completed.get_custom_messages()
    assert len(messages) == count + 3
    for number, message in enumerate(messages[:count]):
        assert message == (f"{number} " * size)[:size], f"message {number}: {message[:50]}"
    assert messages[count] == "big" * (big // 3)
    assert messages[count + 1] == "é€\ufffd" * 500_000
    assert messages[count + 2] == "the end"

    said = log_of(instance, ran.result.run_id)
    assert said.count("[NOTICE] an unknown level") == 1
    assert said.count("[7] no text for a level") == 1
    warnings = [line for line in said if line.startswith("[pipes] a message of")]
    assert ["report_weather" in line for line in warnings] == [True, False, False]
    assert "isn't JSON" in warnings[1]
    assert "isn't UTF-8" in warnings[2]
    stdout, _ = output_of(ran.result, instance)
    assert stdout == b"".join(b"%d\n" % number for number in range(lines))


@pytest.mark.parametrize(
    ("arguments", "words", "known"),
    [
        pytest.param(
            {"command": ["bash", "-c", "echo bad luck >&2; exit 3"]},
            ["the payload ended with exit code 3 on c", "Its last words: bad luck"],
            {"state": "FAILED", "exit_code": 3, "stderr_tail": "bad luck"},
            id="exit code",
        ),
        pytest.param(
            {"command": ["bash", "-c", "echo so long >&2; kill -SEGV $$"]},
            ["the payload was killed by signal 11 (SIGSEGV) on c", "so long"],
            {"state": "FAILED", "signal": 11, "stderr_tail": "so long"},
            id="signal",
        ),
        pytest.param(
            {"command": "python3 hog.py", "files": ["hog.py"], "options": {"mem": "80M"}},
            ["out of memory: asked for 80 MiB", 'ask for more with mem="160M"'],
            {"state": "OUT_OF_MEMORY"},
            id="out of memory",
        ),
        pytest.param(
            {"command": "pyhton3 features.py"},
            ["the payload couldn't be started on c", "pyhton3"],
            {"state": "FAILED", "exit_code": 127},
            id="no such command",
        ),
        pytest.param(
            {"command": ["bash", "-c", "cat data.csv"]},
            ["exit code 1", "No such file or directory", "files=[…]"],
            {"state": "FAILED", "exit_code": 1, "stderr_tail": "cat: data.csv: No such file or directory"},
            id="a file that stayed at home",
        ),
    ],
)
def test_a_job_that_fails_is_told_in_plain_words(
    instance: dg.DagsterInstance,
    cluster: Cluster,
    payloads: Path,
    arguments: dict[str, Any],
    words: list[str],
    known: dict[str, Any],
) -> None:
    files = [payloads / name for name in arguments.get("files", ())]
    told, metadata = failure_of(run_job(instance, **{**arguments, "files": files}).result)
    assert told.startswith(f"Slurm job {metadata['job_id']}: ")
    for part in words:
        assert part in told
    assert metadata | known == metadata
    assert metadata["node_list"] in {"c1", "c2"}
    assert metadata["node_list"] in told
    assert metadata["elapsed_seconds"] >= 0
    row = rows_of(cluster, metadata["job_id"])[0]
    assert (row["State"], row["NodeList"]) == (metadata["state"], metadata["node_list"])
    cluster.exec("login", ["test", "-d", metadata["spool"]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "nowhere"}, ["invalid partition", "partitions here: main (default), gpu, short"]),
        ({"mem": "10T"}, ["memory"]),
    ],
    ids=["unknown partition", "impossible memory"],
)
def test_what_slurm_refuses_is_told_in_its_words(
    instance: dg.DagsterInstance, options: dict[str, str], words: list[str]
) -> None:
    told, metadata = failure_of(run_job(instance, command="true", options=options).result)
    assert "refused: " in told
    for part in words:
        assert part in told.lower()
    assert metadata["state"] == "REJECTED"
    assert metadata["reason"]
    assert "job_id" not in metadata


def test_a_payload_file_that_is_not_there_submits_nothing(alice: SiteClient) -> None:
    before = {record.key for record in alice.records()}
    compute = ComputeResource(mode="slurm", slurm=SlurmResource(site=SITE))

    @dg.asset(required_resource_keys={"compute"})
    def thing(context: dg.AssetExecutionContext):  # type: ignore[no-untyped-def]  # noqa: ANN202
        yield from context.resources.compute.run(context=context, payload_path="trian.py").get_results()

    with dg.DagsterInstance.ephemeral() as instance:
        told, _ = failure_of(
            dg.materialize([thing], resources={"compute": compute}, instance=instance, raise_on_error=False)
        )
    assert "payload_path: there is no file 'trian.py' on this machine" in told
    assert told.endswith("nothing was submitted")
    assert {record.key for record in alice.records()} == before


def test_terminating_the_run_cancels_the_job_in_slurm(
    alice: SiteClient, cluster: Cluster, definitions: ModuleType, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    script = tmp_path / "terminated.py"
    script.write_text(TERMINATED)
    before = {record.key for record in alice.records()}
    running: list[Record] = []

    def runs() -> bool:
        running[:] = [
            record
            for record in alice.records()
            if record.key not in before and record.state is JobState.RUNNING and record.starts
        ]
        return bool(running)

    run = subprocess.Popen(
        [sys.executable, str(script), str(definitions.__file__), str(tmp_path), "multiprocess"],
    )
    try:
        wait_until(runs, "the job to run", 180)
        (dagster_run,) = instance.get_runs()
        instance.report_run_canceling(dagster_run)
        os.kill(run.pid, signal.SIGTERM)
        run.wait(60)
    finally:
        run.kill()
        run.wait()
        for one in alice.records():
            if one.key not in before and not one.state.is_final and not one.cancel:
                alice.cancel(one.key)
    (job,) = running
    assert job.job_id is not None
    cluster.wait_job(job.job_id, ["CANCELLED"])
    left = cluster.exec(job.node_list or "", ["pgrep", "-f", "sleep 86399"], check=False)
    assert left.stdout == ""
    record = alice.record(job.key)
    assert record is not None
    assert record.state is JobState.CANCELLED
    assert record.cancel is not None
    assert dagster_run.run_id in record.cancel.reason
    ended = instance.get_run_by_id(dagster_run.run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.CANCELED


def test_two_runs_in_one_asset_are_two_jobs(instance: dg.DagsterInstance, cluster: Cluster) -> None:
    completed: list[CompletedJob] = []

    def use(context: dg.AssetExecutionContext, slurm: PipesSlurmClient) -> CompletedJob:
        completed.extend(slurm.run(context=context, command=["echo", word]) for word in ("one", "two"))
        return completed[-1]

    ran = Ran(use, instance)
    assert ran.completed is completed[1]
    first, second = (one.record for one in completed)
    assert first.job_id is not None
    assert second.job_id is not None
    assert first.job_id < second.job_id
    for record in (first, second):
        assert rows_of(cluster, record.job_id or 0)[0]["JobName"] == f"thing.{record.key}"
    handles = handles_of(instance, ran.result.run_id)
    assert [handle.external_run_id for handle in handles] == [first.key, second.key]


def test_a_job_of_two_tasks_has_accountings_figures(
    instance: dg.DagsterInstance, cluster: Cluster, payloads: Path
) -> None:
    ran = run_job(
        instance,
        command=["srun", "python3", "both_tasks.py"],
        files=[payloads / "both_tasks.py"],
        options={"ntasks": 2, "cpus": 1, "mem_per_cpu": "100M"},
    )
    assert ran.completed.record.accounting is not None
    metadata = metadata_of(ran.result, "thing")
    row = as_the_cluster_says(cluster, metadata)
    assert metadata["cpus"] == 2
    used = metadata["cpu_efficiency"] * metadata["cpus"] * metadata["elapsed_seconds"]
    steps = 2  # the batch step and srun's: pyslurm gives whole seconds of each
    assert seconds(row["TotalCPU"]) - steps <= used + 0.01
    assert 2 < used <= seconds(row["TotalCPU"])
    assert 1_000_000 < metadata["peak_memory_bytes"] < 100 * 1024**2
    assert sorted(output_of(ran.result, instance)[0].splitlines()) == [b"task 0 of 2", b"task 1 of 2"]


def test_the_pipes_module_goes_along_unless_that_is_switched_off(
    instance: dg.DagsterInstance, cluster: Cluster, payloads: Path
) -> None:
    for node in ("c1", "c2"):
        found = cluster.exec(node, ["python3", "-c", "import dagster_pipes"], user="alice", check=False)
        assert "No module named 'dagster_pipes'" in found.stderr
    arguments: dict[str, Any] = {
        "command": "python3 features.py",
        "files": [payloads / "features.py"],
        "env": {"YEAR": "1"},
    }
    assert run_job(instance, **arguments).completed.record.state is JobState.COMPLETED
    told, metadata = failure_of(run_job(instance, **arguments, ship_pipes_module=False).result)
    assert "exit code 1 " in told
    assert "No module named 'dagster_pipes'" in told
    assert "ModuleNotFoundError" in metadata["stderr_tail"]
