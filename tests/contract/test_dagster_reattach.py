"""Steps that are killed, retried or executed again: what becomes of the job of the attempt before.

Real step processes of Dagster, the real local helper and its agent. How often a payload ran is counted by a file that
it appends to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pytest

from contract.bus_site import wait_until
from contract.scripted_jobs import handles_of, log_of
from dagster_slurmbus.bus import local_client
from slurmbus.client import SiteClient
from slurmbus.home import Home
from slurmbus.local import stop_local
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

DEFINITIONS = Path(__file__).parent / "payloads" / "reattached.py"
PAYLOAD = DEFINITIONS.with_name("patient.py")
FIRST = b"".join(b"line %d\n" % number for number in range(1000))
REST = b"".join(b"line %d\n" % number for number in range(1000, 2000))
KILLS = 4

WORKER = """
import json, sys
import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob

if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    with dg.DagsterInstance.from_config(options["instance"]) as instance:
        again = None
        if options["parent"]:
            if options["how"] == "all":
                again = dg.ReexecutionOptions(options["parent"])
            else:
                again = dg.ReexecutionOptions.from_failure(options["parent"], instance)
        with dg.execute_job(
            ReconstructableJob.for_file(options["definitions"], options["job"]),
            instance=instance,
            run_config=options["config"],
            tags=options["tags"],
            reexecution_options=again,
            raise_on_error=False,
        ):
            pass
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("reattach") / "slurmbus"
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


@dataclass
class Desk:
    """A Dagster instance, its runs in processes of their own, and what payloads leave behind."""

    folder: Path
    instance: dg.DagsterInstance
    client: SiteClient
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "worker.py").write_text(WORKER)
        (self.folder / "dagster.yaml").touch()
        self.payload = self.folder / "payload.py"
        self.payload.write_bytes(PAYLOAD.read_bytes())
        self.before = {record.key for record in self.client.records()}

    def start(
        self,
        job: str = "one",
        *,
        parent: str | None = None,
        how: str = "from failure",
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Start a run worker."""
        told = {"dagster/is_resume_retry": "true"} if how == "tagged" else {}
        options = {
            "instance": str(self.folder),
            "definitions": str(DEFINITIONS),
            "job": job,
            "parent": parent,
            "how": how,
            "tags": {**(tags or {}), **told},
            "config": config or {},
        }
        with (self.folder / "worker.log").open("ab") as output:
            worker = subprocess.Popen(
                [sys.executable, str(self.folder / "worker.py"), json.dumps(options)],
                env={**os.environ, "DESK": str(self.folder), **self.environment, **environment},
                stdout=output,
                stderr=output,
            )
        self.workers.append(worker)
        return worker

    def run(self, job: str = "one", **options: Any) -> dg.DagsterRun:
        """Run to the end."""
        assert self.start(job, **options).wait(120) == 0, (self.folder / "worker.log").read_text()[-5000:]
        return self.last_run

    def go(self) -> None:
        """Let the payloads end."""
        (self.folder / "go").touch()

    @property
    def last_run(self) -> dg.DagsterRun:
        return self.instance.get_runs(limit=1)[0]

    @property
    def payloads(self) -> list[str]:
        """A line for each payload that ran."""
        counted = self.folder / "count"
        return counted.read_text().splitlines() if counted.exists() else []

    @property
    def jobs(self) -> list[Record]:
        """The newest first."""
        return [record for record in self.client.records() if record.key not in self.before]

    def step_processes(self, run_id: str) -> list[int]:
        """The process ids of the run's step workers, in the order of their start."""
        entries = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
        return [int(str(entry.get_dagster_event().event_specific_data.metadata["pid"].value)) for entry in entries]

    def wait_for_output(self, run_id: str, data: bytes = FIRST) -> None:
        wait_until(lambda: self.output(run_id).endswith(data), "the first lines to be seen", 60)

    def output(self, run_id: str, step: str | None = None, kind: str = "stdout") -> bytes:
        """What the run shows of its steps' output, all attempts together."""
        shown = b""
        for entry in self.instance.all_logs(run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED):
            data = entry.get_dagster_event().logs_captured_data
            if step is None or step in (data.step_keys or ()):
                found = self.instance.compute_log_manager.get_log_data([run_id, "compute_logs", data.file_key])
                shown += getattr(found, kind) or b""
        return shown

    def materializations(self, run_id: str) -> list[dg.AssetMaterialization]:
        entries = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        return [entry.asset_materialization for entry in entries if entry.asset_materialization is not None]

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status


D = TypeVar("D", bound=Desk)


@contextmanager
def desk_at(folder: Path, client: SiteClient, kind: type[D]) -> Iterator[D]:
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        desk = kind(folder, instance, client)
        try:
            yield desk
        finally:
            for worker in desk.workers:
                worker.kill()
                worker.wait()


@pytest.fixture
def desk(home: Path, tmp_path: Path) -> Iterator[Desk]:
    with desk_at(tmp_path, local_client(home), Desk) as desk:
        yield desk


def start_and_kill(desk: Desk, job: str = "one", **options: Any) -> str:
    """Kill the step's process while its job runs and the first lines were seen; give the run's id."""
    worker = desk.start(job, **options)
    wait_until(lambda: desk.payloads or worker.poll() is not None, "the payload to run", 180)
    run_id = desk.last_run.run_id
    desk.wait_for_output(run_id)
    os.kill(desk.step_processes(run_id)[-1], signal.SIGKILL)
    return run_id


def assert_one_job_and_all_of_it(desk: Desk, run_id: str, output: bytes = FIRST + REST) -> None:
    assert desk.status(run_id) is dg.DagsterRunStatus.SUCCESS, (desk.folder / "worker.log").read_text()[-5000:]
    assert desk.payloads == ["ran"]
    (job,) = desk.jobs
    assert job.state is JobState.COMPLETED
    (materialization,) = desk.materializations(run_id)
    assert materialization.metadata["rows"].value == 10
    assert materialization.metadata["slurmbus/key"].value == job.key
    assert desk.output(run_id) == output


# ------------------------------------------------------------------ kill -9


def test_a_killed_step_that_is_retried_goes_on_with_its_job_and_repeats_nothing(desk: Desk) -> None:
    run_id = start_and_kill(desk, "retried")
    wait_until(lambda: len(handles_of(desk.instance, run_id)) == 2, "the retry to find the job", 60)
    desk.go()
    assert desk.workers[-1].wait(60) == 0
    assert_one_job_and_all_of_it(desk, run_id)
    assert desk.output(run_id, kind="stderr").count(b"a warning") == 1
    lines = log_of(desk.instance, run_id)
    assert [lines.count(text) for text in ("said early", "said late")] == [1, 1]
    assert [sum(f" is {state}" in line for line in lines) for state in ("PENDING", "COMPLETED")] == [1, 1]
    (found,) = [line for line in lines if line.startswith("going on with local job")]
    assert "which an earlier attempt in this run submitted: it is RUNNING" in found
    assert len({handle.external_run_id for handle in handles_of(desk.instance, run_id)}) == 1


@pytest.mark.parametrize("how", ["from failure", "tagged"])
def test_a_reexecution_from_failure_goes_on_with_the_running_job_and_shows_all_of_it(desk: Desk, how: str) -> None:
    killed = start_and_kill(desk)
    assert desk.workers[-1].wait(60) == 0
    assert desk.status(killed) is dg.DagsterRunStatus.FAILURE
    worker = desk.start(parent=killed, how=how)
    wait_until(lambda: desk.last_run.run_id != killed and handles_of(desk.instance, desk.last_run.run_id), "it", 60)
    desk.go()
    assert worker.wait(60) == 0
    again = desk.last_run.run_id
    assert_one_job_and_all_of_it(desk, again)
    assert desk.output(killed) == FIRST
    assert log_of(desk.instance, again).count("said early") == 1
    assert desk.materializations(killed) == []


def test_a_reexecution_from_failure_finds_the_job_that_has_ended_meanwhile(desk: Desk) -> None:
    killed = start_and_kill(desk)
    desk.workers[-1].wait(60)
    desk.go()
    wait_until(lambda: desk.jobs[0].state.is_final, "the job to end", 60)
    again = desk.run(parent=killed).run_id
    assert_one_job_and_all_of_it(desk, again)
    (found,) = [line for line in log_of(desk.instance, again) if line.startswith("going on with local job")]
    assert f"which an earlier attempt in run {killed} submitted: it is COMPLETED" in found


def test_reexecuting_all_submits_anew(desk: Desk) -> None:
    killed = start_and_kill(desk)
    desk.workers[-1].wait(60)
    desk.go()
    again = desk.run(parent=killed, how="all").run_id
    assert desk.status(again) is dg.DagsterRunStatus.SUCCESS
    assert desk.payloads == ["ran", "ran"]
    assert len(desk.jobs) == 2


@pytest.mark.parametrize(
    "moment",
    [
        "before submit",
        "after submit",
        "before output",
        "half of the output",
        "after output",
        "before log",
        "after log",
        "before return",
    ],
)
def test_killed_at_a_moment(desk: Desk, moment: str) -> None:
    desk.go()
    run = desk.run("retried", DIE=moment)
    assert (desk.folder / "died").read_text() == moment
    assert len(desk.step_processes(run.run_id)) == 2
    assert_one_job_and_all_of_it(desk, run.run_id)
    lines = log_of(desk.instance, run.run_id)
    assert [lines.count(text) for text in ("said early", "said late")] == [1, 1]
    assert desk.output(run.run_id, kind="stderr").count(b"a warning") == 1


def test_killed_again_and_again_while_it_never_stops_talking(desk: Desk) -> None:
    desk.payload.write_bytes(PAYLOAD.with_name("chatty.py").read_bytes())
    worker = desk.start("chatty")
    wait_until(lambda: desk.payloads or worker.poll() is not None, "the payload to run", 180)
    run_id = desk.last_run.run_id
    for attempt in range(KILLS):
        before = len(desk.output(run_id))
        wait_until(lambda at=attempt: len(desk.step_processes(run_id)) > at, "the next attempt", 60)
        wait_until(lambda more=before: len(desk.output(run_id)) > more, "more output", 60)
        os.kill(desk.step_processes(run_id)[-1], signal.SIGKILL)
    wait_until(lambda: len(desk.step_processes(run_id)) == KILLS + 1, "the last attempt", 60)
    desk.go()
    assert worker.wait(120) == 0
    assert desk.status(run_id) is dg.DagsterRunStatus.SUCCESS
    said = int((desk.folder / "said").read_text())
    assert desk.payloads == ["ran"]
    assert desk.output(run_id) == b"".join(b"line %d %s\n" % (one, b"x" * (one % 500)) for one in range(said))
    lines = [line for line in log_of(desk.instance, run_id) if line.startswith("said ")]
    assert lines == [f"said {number}" for number in range(0, said, 100)]


def test_a_killed_run_worker_leaves_its_job_to_the_reexecution(desk: Desk) -> None:
    worker = desk.start()
    wait_until(lambda: desk.payloads, "the payload to run", 60)
    killed = desk.last_run
    desk.wait_for_output(killed.run_id)
    for process in (worker.pid, *desk.step_processes(killed.run_id)):
        os.kill(process, signal.SIGKILL)
    worker.wait(60)
    desk.instance.report_run_failed(killed)  # what Dagster's run monitoring does
    desk.go()
    assert_one_job_and_all_of_it(desk, desk.run(parent=killed.run_id, how="tagged").run_id)


def test_the_run_worker_is_told_to_stop_by_a_redeploy(desk: Desk) -> None:
    worker = desk.start("retried")
    wait_until(lambda: desk.payloads, "the payload to run", 60)
    stopped = desk.last_run.run_id
    desk.wait_for_output(stopped)
    worker.terminate()
    worker.wait(60)
    assert desk.status(stopped) is dg.DagsterRunStatus.FAILURE
    assert desk.jobs[0].cancel is None
    assert any("stops following its job" in line for line in log_of(desk.instance, stopped))
    desk.go()
    assert_one_job_and_all_of_it(desk, desk.run("retried", parent=stopped).run_id)


def test_a_terminate_is_not_retried_whatever_the_retry_policy(desk: Desk) -> None:
    worker = desk.start("retried")
    wait_until(lambda: desk.payloads, "the payload to run", 60)
    run = desk.last_run
    desk.wait_for_output(run.run_id)
    desk.instance.report_run_canceling(run)
    worker.terminate()
    worker.wait(60)
    assert desk.status(run.run_id) is dg.DagsterRunStatus.CANCELED
    assert desk.payloads == ["ran"]
    (job,) = desk.jobs
    assert job.state is JobState.CANCELLED
    assert len(desk.step_processes(run.run_id)) == 1


# ------------------------------------------------------------------ jobs that aren't followed again


def test_a_failed_job_is_not_followed_again(desk: Desk) -> None:
    desk.go()
    run = desk.run("retried", FAIL="once")
    assert desk.status(run.run_id) is dg.DagsterRunStatus.SUCCESS
    assert desk.payloads == ["ran", "ran"]
    assert sorted(job.state for job in desk.jobs) == [JobState.COMPLETED, JobState.FAILED]
    assert len(desk.materializations(run.run_id)) == 1
    (failed,) = [job for job in desk.jobs if job.state is JobState.FAILED]
    told = f"job {failed.key} of an earlier attempt is FAILED: another one is submitted"
    assert told in log_of(desk.instance, run.run_id)


@pytest.mark.parametrize(("setting", "running"), [("resubmit", True), ("resubmit", False), ("reattach", True)])
@pytest.mark.parametrize("change", ["code", "resources"])
def test_a_changed_request(desk: Desk, setting: str, change: str, *, running: bool) -> None:
    killed = start_and_kill(desk)
    desk.workers[-1].wait(60)
    (old,) = desk.jobs
    if not running:
        desk.go()
        wait_until(lambda: desk.jobs[0].state.is_final, "the job to end", 60)
    changed = {}
    if change == "code":
        desk.payload.write_text(desk.payload.read_text() + "\n# other code\n")
    else:
        changed = {"CPUS": "2"}
    desk.environment |= {"ON_CHANGED": setting, **changed}
    worker = desk.start(parent=killed)
    if running:
        wait_until(lambda: desk.last_run.run_id != killed and handles_of(desk.instance, desk.last_run.run_id), "it", 60)
        desk.go()
    assert worker.wait(60) == 0
    again = desk.last_run.run_id
    part = {"code": "files", "resources": "resources"}[change]
    (told,) = [line for line in log_of(desk.instance, again) if line.startswith(f"the request has changed ({part})")]
    record = desk.client.record(old.key)
    assert record is not None
    assert desk.status(again) is dg.DagsterRunStatus.SUCCESS
    if setting == "reattach":
        assert "is followed all the same" in told
        assert_one_job_and_all_of_it(desk, again)
        assert "slurmbus/files_sha256" not in desk.materializations(again)[0].metadata
        return
    assert desk.payloads == ["ran", "ran"]
    assert len(desk.jobs) == 2
    if running:
        assert "is cancelled, another one follows its end" in told
        assert record.state is JobState.CANCELLED
        assert record.end_time is not None
        new = desk.jobs[0]
        assert new.key != old.key
        assert new.created_at >= record.end_time
    else:
        assert "has completed, another one is submitted" in told


def test_a_changed_request_may_fail_the_step(desk: Desk) -> None:
    killed = start_and_kill(desk)
    desk.workers[-1].wait(60)
    again = desk.run(parent=killed, CPUS="2", ON_CHANGED="fail").run_id
    assert desk.status(again) is dg.DagsterRunStatus.FAILURE
    (failed,) = desk.instance.all_logs(again, of_type=dg.DagsterEventType.STEP_FAILURE)
    data = failed.get_dagster_event().step_failure_data.user_failure_data
    assert data is not None
    assert "the request has changed (resources)" in (data.description or "")
    assert "re-execute all steps" in (data.description or "")
    (job,) = desk.jobs
    assert job.state is JobState.RUNNING
    desk.go()
    assert_one_job_and_all_of_it(desk, desk.run(parent=again).run_id)


# ------------------------------------------------------------------ who is who


def test_two_partitions_never_meet_each_others_jobs(desk: Desk) -> None:
    runs = {}
    for partition in ("a", "b"):
        before = len(desk.payloads)
        desk.start("partitioned", tags={"dagster/partition": partition})
        wait_until(lambda at=before: len(desk.payloads) > at, "the payload to run", 60)
        runs[partition] = desk.last_run.run_id
        desk.wait_for_output(runs[partition])
    for run_id in runs.values():
        os.kill(desk.step_processes(run_id)[-1], signal.SIGKILL)
    for worker in desk.workers:
        worker.wait(60)
    desk.go()
    for partition in ("b", "a"):
        again = desk.run("partitioned", parent=runs[partition], how="tagged", tags={"dagster/partition": partition})
        assert desk.output(again.run_id) == FIRST + REST
        (materialization,) = desk.materializations(again.run_id)
        assert materialization.partition == partition
        assert materialization.metadata["payload_partition"].value == partition
    assert sorted(desk.payloads) == ["ran a", "ran b"]


def test_a_run_over_several_partitions_finds_its_own_job(desk: Desk) -> None:
    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
    worker = desk.start("single_run", tags=tags)
    wait_until(lambda: desk.payloads or worker.poll() is not None, "the payload to run", 180)
    killed = desk.last_run.run_id
    desk.wait_for_output(killed)
    os.kill(desk.step_processes(killed)[-1], signal.SIGKILL)
    worker.wait(60)
    desk.go()
    again = desk.run("single_run", parent=killed, how="tagged", tags=tags).run_id
    assert desk.status(again) is dg.DagsterRunStatus.SUCCESS
    assert desk.payloads == ["ran a-c"]
    assert {one.partition for one in desk.materializations(again)} == {"a", "b", "c"}
    # a job of another range isn't even looked at
    other = {**tags, "dagster/asset_partition_range_end": "b"}
    last = desk.run("single_run", parent=killed, how="tagged", tags=other).run_id
    assert desk.payloads == ["ran a-c", "ran a-b"]
    assert not any("earlier attempt" in line for line in log_of(desk.instance, last))


def test_mapped_steps_find_their_own_jobs(desk: Desk) -> None:
    worker = desk.start("mapped")
    wait_until(lambda: len(desk.payloads) == 2 or worker.poll() is not None, "both payloads to run", 60)
    killed = desk.last_run.run_id
    for name in ("x", "y"):
        wait_until(lambda name=name: desk.output(killed, f"work[{name}]").endswith(FIRST), "the first lines", 60)
    for entry in desk.instance.all_logs(killed, of_type=dg.DagsterEventType.STEP_WORKER_STARTED):
        if (entry.step_key or "").startswith("work["):
            os.kill(int(str(entry.get_dagster_event().event_specific_data.metadata["pid"].value)), signal.SIGKILL)
    worker.wait(60)
    desk.go()
    again = desk.run("mapped", parent=killed, how="tagged").run_id
    assert desk.status(again) is dg.DagsterRunStatus.SUCCESS
    assert sorted(desk.payloads) == ["ran x", "ran y"]
    steps = {job.key: job.labels["dagster_step"] for job in desk.jobs}
    for handle in handles_of(desk.instance, again):
        assert steps[handle.external_run_id] == handle.step_key


def test_calls_from_threads_find_their_jobs_in_any_order(desk: Desk) -> None:
    worker = desk.start("threads", ORDER="0123")
    wait_until(lambda: len(desk.payloads) == 4 or worker.poll() is not None, "four payloads to run", 60)
    killed = desk.last_run.run_id
    os.kill(desk.step_processes(killed)[-1], signal.SIGKILL)
    worker.wait(60)
    desk.go()
    again = desk.run("threads", parent=killed, ORDER="3210").run_id
    assert desk.status(again) is dg.DagsterRunStatus.SUCCESS
    assert sorted(desk.payloads) == ["ran 0", "ran 1", "ran 2", "ran 3"]
    assert len(desk.jobs) == 4


def test_calls_with_names_of_their_own_are_found_by_them(desk: Desk) -> None:
    worker = desk.start("named", ORDER="ab")
    wait_until(lambda: len(desk.payloads) == 1 or worker.poll() is not None, "a payload to run", 60)
    killed = desk.last_run.run_id
    os.kill(desk.step_processes(killed)[-1], signal.SIGKILL)
    worker.wait(60)
    desk.go()
    again = desk.run("named", parent=killed, ORDER="ba").run_id
    assert desk.status(again) is dg.DagsterRunStatus.SUCCESS
    assert sorted(desk.payloads) == ["ran same", "ran same"]
    names = [handle.client_name for handle in handles_of(desk.instance, again)]
    assert names == ["slurmbus:key:b", "slurmbus:key:a"]
    (first,) = handles_of(desk.instance, killed)
    assert handles_of(desk.instance, again)[1].external_run_id == first.external_run_id
