"""Figures, live use, facts, reasons and attempts with more memory or time, on the real cluster."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import contract.test_dagster_reattach as reattached
from contract.bus_site import wait_until
from contract.scripted_jobs import failure_of, handles_of, log_of
from contract.test_dagster_reattach import desk_at
from dagster_slurmbus import MoreTime, PipesSlurmClient
from dagster_slurmbus.reasons import explain
from integration.conftest import SITES
from integration.jobs import spec
from integration.test_reattach import ClusterDesk
from slurmbus.client import SiteClient
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_protocol.messages import JobOptions, Record
from slurmbus_protocol.states import JobState

SITE = SITES["alice"]
MIB = 1024**2
REASONS = """
import ctypes, glob
library = ctypes.CDLL(glob.glob("/usr/lib/*/libslurm.so*")[0])
word = library.slurm_job_state_reason_string
word.restype, word.argtypes = ctypes.c_char_p, (ctypes.c_int,)
print("\\n".join(word(number).decode() for number in range(400)))
"""
WORK = """
printf '{"dashboard": "http://%s:8265", "workers": "2 of 2"}' "$(hostname)" >"$SLURMBUS_SPOOL/new"
mv "$SLURMBUS_SPOOL/new" "$SLURMBUS_SPOOL/$SLURMBUS_START.facts"
srun -n2 --ntasks-per-node=1 python3 -c '
import time
held = b"x" * (150 * 1024**2)
end = time.monotonic() + 13
while time.process_time() < 1.25: pass
while time.monotonic() < end: time.sleep(0.1)
'
srun -n1 -N1 false
exit 0
"""

HOLD = """python3 -c '
import time
held = b"x" * (60 * 1024**2)
while time.process_time() < 1: pass
time.sleep(5)
' &
"""


@pytest.fixture(autouse=True)
def _environment(home: Home, alice: SiteClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")


class Step(threading.Thread):
    """An asset that runs one job, beside other things."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        super().__init__(name="a step")
        self.folder = folder
        self.arguments = arguments

    def run(self) -> None:
        @dg.asset
        def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
            return PipesSlurmClient(site=SITE).run(context=context, **self.arguments).get_materialize_result()

        with dg.DagsterInstance.local_temp(str(self.folder)) as instance:
            self.result = dg.materialize([thing], instance=instance, raise_on_error=False)
            self.lines = log_of(instance, self.result.run_id)

    @property
    def metadata(self) -> dict[str, Any]:
        self.join(300)
        assert self.result.success, failure_of(self.result)
        (materialization,) = self.result.asset_materializations_for_node("thing")
        return {name.removeprefix("slurmbus/"): value.value for name, value in materialization.metadata.items()}


def rows(metadata: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [record.data for record in metadata[name].records]


@pytest.fixture(scope="module")
def slow(alice: SiteClient, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Step]:
    """A step whose first job reaches its time limit of a minute; it waits beside the other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURMBUS_HOME", str(home.path))
        marker = f"/home/alice/slow-{secrets.token_hex(4)}"
        step = Step(
            tmp_path_factory.mktemp("slow"),
            command=["bash", "-c", f"[[ -e {marker} ]] && exit 0; touch {marker}; sleep 600"],
            options={"partition": "short", "time_limit": 1, "mem": "50M"},
            on_timeout=MoreTime(factor=2),
            wait_for_accounting=True,
        )
        step.start()
        yield step
        step.join(300)


@pytest.mark.usefixtures("slow")
def test_figures_steps_live_use_and_facts_of_a_job_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    options = {"nodes": 2, "ntasks": 2, "cpus": 2, "mem": "400M", "gpus_per_node": "1", "time_limit": 5}
    step = Step(tmp_path, command=["bash", "-c", WORK], options=options)
    step.start()
    metadata = step.metadata
    shown = {row["step"]: row for row in rows(metadata, "steps")}
    assert set(shown) == {"batch", "0", "1"}
    assert (shown["0"]["name"], shown["0"]["state"], shown["0"]["tasks"], shown["0"]["nodes"]) == (
        "python3",
        "COMPLETED",
        2,
        2,
    )
    assert (shown["1"]["state"], shown["1"]["exit code"]) == ("FAILED", "1:0")
    assert 2.5 <= shown["0"]["CPU s"] < 20
    assert 150 <= shown["0"]["max memory MiB"] < 250
    assert metadata["nodes"] == metadata["gpus"] == 2
    assert metadata["memory_allocated_bytes"] == 800 * MIB
    assert 300 / 800 <= metadata["memory_efficiency"] < 500 / 800
    assert 0 < metadata["cpu_efficiency"] < 1
    assert metadata["gpu_hours"] == pytest.approx(2 * metadata["elapsed_seconds"] / 3600)
    assert metadata["core_hours"] == pytest.approx(metadata["cpus"] * metadata["elapsed_seconds"] / 3600)
    assert metadata["time_limit_used"] == pytest.approx(metadata["elapsed_seconds"] / 300)
    job = cluster.accounting(metadata["job_id"])[0]
    assert metadata["cpu_seconds"] == pytest.approx(float(job["TotalCPU"].rpartition(":")[2]), abs=2)
    # Nothing here measures energy or the use of GPUs.
    assert not {"energy_joules", "gpu_utilization"} & set(metadata)
    # Of its two nodes the runner saw the one that it is on, with the task there, though srun isn't its parent.
    assert metadata["first_node"] in {"c1", "c2"}
    assert 150 * MIB <= metadata["first_node_peak_memory_bytes"] < 300 * MIB
    assert metadata["dashboard"] == f"http://{metadata['first_node']}:8265"
    assert f"Slurm job {metadata['job_id']}: workers: 2 of 2" in step.lines
    (live,) = [line for line in step.lines if " uses " in line]
    assert " of 400 MiB of memory" in live
    assert f"on {metadata['first_node']}, one of its 2 nodes" in live


def test_all_processes_and_the_steps_of_a_single_task_count(tmp_path: Path) -> None:
    """Three processes at once below the runner, and two sruns side by side, which aren't below it."""
    options = {"cpus": 3, "mem": "400M"}
    three = Step(tmp_path / "three", command=["bash", "-c", f"{3 * HOLD} wait"], options=options)
    srun = "srun -n1 -c1 --overlap " + HOLD
    steps = Step(tmp_path / "steps", command=["bash", "-c", f"{2 * srun} wait"], options=options)
    for step in (three, steps):
        step.folder.mkdir()
        step.start()
    found = three.metadata
    assert 180 * MIB <= found["peak_memory_bytes"] < 260 * MIB
    assert found["memory_efficiency"] == pytest.approx(found["peak_memory_bytes"] / (400 * MIB))
    assert 3 <= found["cpu_seconds"] < 5
    assert found["cpu_efficiency"] == pytest.approx(found["cpu_seconds"] / (3 * found["elapsed_seconds"]))
    assert "steps" not in found  # nobody waited for accounting
    found = steps.metadata
    assert 120 * MIB <= found["peak_memory_bytes"] < 230 * MIB
    assert found["memory_efficiency"] == pytest.approx(found["peak_memory_bytes"] / (400 * MIB))
    assert 2 <= found["cpu_seconds"] < 4
    assert {row["step"] for row in rows(found, "steps")} == {"batch", "0", "1"}


def test_a_killed_step_goes_on_with_the_job_that_got_more_memory(
    cluster: Cluster, alice: SiteClient, tmp_path: Path, payloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reattached, "DEFINITIONS", payloads / "climbing.py")
    there = f"/home/alice/desk-{secrets.token_hex(4)}"
    cluster.exec("login", ["mkdir", there], user="alice")
    with desk_at(tmp_path, alice, ClusterDesk) as desk:
        desk.cluster, desk.there = cluster, there
        desk.environment |= {"SITE": SITE, "THERE": there}
        worker = desk.start()
        wait_until(lambda: desk.payloads or worker.poll() is not None, "the second job's payload", 120)
        killed = desk.last_run
        for process in (worker.pid, *desk.step_processes(killed.run_id)):
            os.kill(process, signal.SIGKILL)
        worker.wait(60)
        desk.instance.report_run_failed(killed)
        desk.go()
        again = desk.run(parent=killed.run_id, how="tagged")
        assert again.status is dg.DagsterRunStatus.SUCCESS
        after, before = desk.jobs
        assert desk.payloads == ["ran"]
        names = [handle.client_name for handle in handles_of(desk.instance, killed.run_id)]
        assert names == ["slurmbus:0", "slurmbus:again:1:0"]
        (materialization,) = desk.materializations(again.run_id)
        shown = {name.removeprefix("slurmbus/"): value.value for name, value in materialization.metadata.items()}
    assert (before.state, after.state) == (JobState.OUT_OF_MEMORY, JobState.COMPLETED)
    assert shown["reattached"] is True
    assert [(row["state"], row["memory"]) for row in rows(shown, "attempts")] == [
        ("OUT_OF_MEMORY", "150M"),
        ("COMPLETED", "600M"),
    ]
    # As Slurm has it.
    asked = [cluster.accounting(record.job_id or 0)[0]["AllocTRES"] for record in (before, after)]
    assert ["mem=150M" in asked[0], "mem=600M" in asked[1]] == [True, True]


def test_every_reason_that_this_slurm_knows_is_explained(cluster: Cluster) -> None:
    words = cluster.exec("login", ["python3", "-c", REASONS]).stdout.split()
    assert len(set(words)) > 200
    assert {word for word in words if explain(word) is None} == {"None", "InvalidReason"}


def test_why_jobs_wait_and_when_they_may_start(cluster: Cluster, alice: SiteClient, slow: Step) -> None:
    """The time that this test needs is the agent's: it asks about all jobs twice a minute."""
    slow.join(300)
    everything = JobOptions(nodes=2, exclusive=True, time_limit_minutes=30)
    keys: dict[str, str] = {}

    def submit(reason: str, options: JobOptions) -> str:
        keys[reason] = alice.submit(spec("sleep", "600", name="waits", options=options))
        return keys[reason]

    def record(reason: str) -> Record:
        found = alice.record(keys[reason])
        assert found is not None
        return found

    def told(*reasons: str) -> None:
        def all_are() -> bool:
            found = {reason: alice.record(keys[reason]) for reason in reasons}
            return all(one is not None and (one.reason or "").startswith(reason) for reason, one in found.items())

        wait_until(all_are, f"{reasons}", 120)
        for reason in reasons:
            assert explain(record(reason).reason or "") is not None

    try:
        first = submit("first", everything)
        wait_until(lambda: (found := alice.record(first)) is not None and found.state is JobState.RUNNING, "it to run")
        running = record("first")
        submit("Resources", everything)
        wait_until(lambda: (alice.record(keys["Resources"]) or running).job_id != running.job_id, "the next one")
        submit("Priority", everything)
        submit("JobHeldUser", JobOptions(hold=True))
        submitted = time.time()
        submit("BeginTime", JobOptions(begin="now+1hour"))
        submit("Dependency", JobOptions(dependency=f"afterok:{running.job_id}"))
        told("Resources", "Priority", "JobHeldUser", "BeginTime", "Dependency")
        # The scheduler plans with the first one's time limit.
        wait_until(lambda: record("Resources").estimated_start is not None, "the expected start", 90)
        expected = (record("Resources").estimated_start or 0) - (running.start_time or 0)
        assert 29 * 60 <= expected <= 32 * 60
        assert 3500 <= (record("BeginTime").estimated_start or 0) - submitted <= 3660
        # Only now: without one of its nodes, the next one waits for another reason.
        cluster.exec("ctld", ["scontrol", "update", "nodename=c2", "state=drain", "reason=test"])
        submit("ReqNodeNotAvail", JobOptions(nodelist="c2"))
        told("ReqNodeNotAvail")
    finally:
        cluster.exec("ctld", ["scontrol", "update", "nodename=c2", "state=resume"])
        for key in keys.values():
            alice.cancel(key)
    for key in keys.values():
        wait_until(lambda key=key: (found := alice.record(key)) is not None and found.state.is_final, "their end", 60)


def test_a_job_that_reached_its_time_limit_gets_more_time(cluster: Cluster, slow: Step) -> None:
    metadata = slow.metadata
    first, second = rows(metadata, "attempts")
    assert (first["state"], first["time limit"]) == ("TIMEOUT", "00:01:00")
    assert (second["state"], second["time limit"]) == ("COMPLETED", "00:02:00")
    (told,) = [line for line in slow.lines if "Running it again" in line]
    assert "it reached its time limit of 1 minute and was ended" in told
    assert told.endswith("Running it again with time_limit=00:02:00 instead of 00:01:00, as attempt 2")
    limit = cluster.exec("ctld", ["sacct", "-n", "-X", "-P", "-j", str(metadata["job_id"]), "-o", "Timelimit"]).stdout
    assert limit.strip() == "00:02:00"
    # It has no steps but the batch script's, and was waited for all the same.
    assert [(row["step"], row["state"]) for row in rows(metadata, "steps")] == [("batch", "COMPLETED")]
