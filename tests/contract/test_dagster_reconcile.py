"""The sensor that ends jobs whose runs are over."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
# ruff: noqa: F811 - fixtures are imported and used by their names
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RESUME_RETRY_TAG, ROOT_RUN_ID_TAG
from dagster._core.test_utils import create_run_for_test

from contract.bus_site import wait_until
from contract.dagster_dev import DagsterDev
from contract.scripted_jobs import failure_of, handles_of
from contract.test_dagster_reattach import DEFINITIONS, Desk, desk, home  # noqa: F401 - fixtures
from dagster_slurmbus import BusResource, ComputeResource, PipesSlurmClient, SlurmResource, slurmbus_reconcile_sensor
from dagster_slurmbus._compat import instance_id
from dagster_slurmbus.reconcile import Verdict, judge
from slurmbus_protocol.messages import CommandPlan, JobSpec, Record
from slurmbus_protocol.states import JobState

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)

Status = dg.DagsterRunStatus


def tick(instance: dg.DagsterInstance, **settings: Any) -> str:
    """Evaluate the sensor once and give what it says."""
    resources = {"compute": ComputeResource(), "slurm": PipesSlurmClient.local()}
    return evaluate(slurmbus_reconcile_sensor("compute", "slurm", **settings), instance, resources)


def evaluate(sensor: dg.SensorDefinition, instance: dg.DagsterInstance, resources: dict[str, Any]) -> str:
    with dg.build_sensor_context(instance=instance, resources=resources) as context:
        result = sensor.evaluate_tick(context)
    assert not result.run_requests
    return result.skip_message or ""


def orphan(desk: Desk) -> tuple[dg.DagsterRun, Record]:
    """Kill a run's processes while its job runs."""
    worker = desk.start()
    wait_until(lambda: desk.payloads or worker.poll() is not None, "the payload to run", 60)
    run = desk.last_run
    assert tick(desk.instance) == "no job has lost its run"
    for process in (worker.pid, *desk.step_processes(run.run_id)):
        os.kill(process, signal.SIGKILL)
    worker.wait(60)
    (job,) = desk.jobs
    assert job.labels["dagster_deployment"] == instance_id(desk.instance)
    return run, job


def ended(desk: Desk, job: Record) -> Record:
    found = desk.client.record(job.key)
    wait_until(lambda: (found := desk.client.record(job.key)) is not None and found.state.is_final, "the end", 60)
    found = desk.client.record(job.key)
    assert found is not None
    return found


# ------------------------------------------------------------------ with real jobs


def test_the_job_of_a_run_that_was_cancelled_by_force_is_cancelled(desk: Desk) -> None:
    run, job = orphan(desk)
    desk.instance.report_run_canceling(run)
    assert tick(desk.instance) == "no job has lost its run"
    desk.instance.report_run_canceled(run)
    told = f"local job {job.job_id} ({job.key}) on site local %s: run {run.run_id} is over (CANCELED)"
    assert tick(desk.instance, on_orphan="report") == told % "is left running"
    assert desk.jobs[0].cancel is None
    assert tick(desk.instance) == told % "was cancelled"
    record = ended(desk, job)
    assert record.state is JobState.CANCELLED
    assert record.cancel is not None
    assert record.cancel.reason == f"reconciled: run {run.run_id} is over (CANCELED)"
    assert tick(desk.instance) == "no job has lost its run"


def test_the_job_of_a_deleted_run_is_cancelled(desk: Desk) -> None:
    run, job = orphan(desk)
    desk.instance.delete_run(run.run_id)
    assert tick(desk.instance).endswith(f"was cancelled: run {run.run_id} was deleted")
    assert ended(desk, job).state is JobState.CANCELLED


def test_the_job_of_a_failed_run_waits_for_a_reexecution(desk: Desk) -> None:
    run, job = orphan(desk)
    desk.instance.report_run_failed(run)
    told = tick(desk.instance)
    assert f"is left running: run {run.run_id} failed" in told
    assert "a re-execution from failure goes on with the job" in told
    worker = desk.start(parent=run.run_id, how="tagged")
    wait_until(lambda: desk.last_run.run_id != run.run_id and handles_of(desk.instance, desk.last_run.run_id), "it", 60)
    assert tick(desk.instance, cancel_failed_after=0.0) == "no job has lost its run"
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(60)
    again = desk.last_run
    desk.instance.report_run_failed(again)
    wait_until(lambda: "was cancelled" in tick(desk.instance, cancel_failed_after=0.0), "the cancel")
    assert ended(desk, job).state is JobState.CANCELLED


def test_a_step_that_outlives_its_run_submits_nothing(desk: Desk) -> None:
    @dg.asset
    def thing(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
        context.instance.report_run_failed(context.run)
        return slurm.run(context=context, command="true").get_materialize_result()

    result = dg.materialize(
        [thing], instance=desk.instance, resources={"slurm": PipesSlurmClient.local()}, raise_on_error=False
    )
    assert failure_of(result)[0] == f"run {result.run_id} is over (FAILURE): this step submits nothing any more"
    assert desk.jobs == []


def test_jobs_of_others_are_left_alone(desk: Desk, tmp_path: Path) -> None:
    run, job = orphan(desk)
    desk.instance.delete_run(run.run_id)
    spec = JobSpec(name="by-hand", plan=CommandPlan(argv=("sleep", "1000")), labels={"dagster_run": run.run_id})
    by_hand = desk.client.submit(spec)
    wait_until(lambda: desk.client.record(by_hand) is not None, "the job that was submitted by hand")
    other = tmp_path / "other"
    other.mkdir()
    with dg.DagsterInstance.local_temp(str(other)) as instance:
        assert tick(instance) == "no job has lost its run"
    desk.instance.get_runs()
    told = tick(desk.instance)
    assert job.key in told
    assert by_hand not in told
    assert ended(desk, job).state is JobState.CANCELLED
    desk.client.cancel(by_hand)


def test_a_client_that_leaves_jobs_alone_at_a_terminate_keeps_the_sensor_away(desk: Desk) -> None:
    client = PipesSlurmClient(forward_termination=False)
    client._local = True

    @dg.asset
    def thing(context: dg.AssetExecutionContext):  # type: ignore[no-untyped-def]  # noqa: ANN202
        done = client.run(context=context, command="true")
        assert "dagster_deployment" not in done.record.labels
        return done.get_materialize_result()

    assert dg.materialize([thing], instance=desk.instance).success


# ------------------------------------------------------------------ the judgement


def run_with(
    instance: dg.DagsterInstance, status: Status, parent: dg.DagsterRun | None = None, *, from_failure: bool = True
) -> dg.DagsterRun:
    tags = {}
    if parent is not None:
        root = parent.root_run_id or parent.run_id
        tags = {PARENT_RUN_ID_TAG: parent.run_id, ROOT_RUN_ID_TAG: root}
        if from_failure:
            tags[RESUME_RETRY_TAG] = "true"
    return create_run_for_test(
        instance,
        status=status,
        tags=tags,
        parent_run_id=parent.run_id if parent else None,
        root_run_id=(parent.root_run_id or parent.run_id) if parent else None,
    )


@pytest.mark.parametrize("status", [one for one in Status if one is not Status.QUEUED])  # those need a code location
def test_a_run_alone(instance: dg.DagsterInstance, status: Status) -> None:
    run = run_with(instance, status)
    expected = {Status.SUCCESS: Verdict.ORPHAN, Status.CANCELED: Verdict.ORPHAN, Status.FAILURE: Verdict.WAIT}
    assert judge(instance, run.run_id, None).verdict is expected.get(status, Verdict.LEAVE)
    if status is Status.FAILURE:
        assert judge(instance, run.run_id, 3600.0).verdict is Verdict.WAIT
        time_of_end = time.time() - 1
        wait_until(lambda: time.time() > time_of_end + 1, "the clock")
        assert judge(instance, run.run_id, 0.0).verdict is Verdict.ORPHAN


@pytest.mark.parametrize("first", [Status.FAILURE, Status.CANCELED, None])
@pytest.mark.parametrize(
    ("heir", "verdict"),
    [
        (Status.NOT_STARTED, Verdict.LEAVE),
        (Status.STARTED, Verdict.LEAVE),
        (Status.CANCELING, Verdict.LEAVE),
        (Status.FAILURE, Verdict.WAIT),
        (Status.SUCCESS, Verdict.ORPHAN),
        (Status.CANCELED, Verdict.ORPHAN),
    ],
)
def test_a_run_with_a_reexecution_from_failure(
    instance: dg.DagsterInstance, first: Status | None, heir: Status, verdict: Verdict
) -> None:
    run = run_with(instance, first or Status.FAILURE)
    middle = run_with(instance, Status.FAILURE, run)
    run_with(instance, heir, middle)
    if first is None:
        instance.delete_run(run.run_id)
    assert judge(instance, run.run_id, None).verdict is verdict
    instance.delete_run(middle.run_id)  # then nobody can say any more that the last one goes on with the first
    assert judge(instance, middle.run_id, None).verdict is verdict


def test_reexecuting_all_takes_nothing_over(instance: dg.DagsterInstance) -> None:
    run = run_with(instance, Status.CANCELED)
    run_with(instance, Status.STARTED, run, from_failure=False)
    assert judge(instance, run.run_id, None).verdict is Verdict.ORPHAN


# ------------------------------------------------------------------ what users may get wrong, and what may fail


def test_a_resource_without_a_site_is_named(instance: dg.DagsterInstance) -> None:
    with pytest.raises(dg.Failure, match="the resource 'db' is str, and has no site"):
        evaluate(slurmbus_reconcile_sensor("db"), instance, {"db": "a database"})
    with pytest.raises(ValueError, match="needs the keys of the resources"):
        slurmbus_reconcile_sensor()
    with pytest.raises(ValueError, match="use 'cancel' or 'report'"):
        slurmbus_reconcile_sensor("db", on_orphan="kill")  # type: ignore[arg-type]


def test_a_site_that_cannot_be_asked_does_not_keep_the_others_waiting(
    desk: Desk, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    gone = SlurmResource(site="gone", bus=BusResource(home=str(tmp_path / "nowhere")))
    told = evaluate(slurmbus_reconcile_sensor("gone", "slurm"), instance, {"gone": gone, "slurm": ComputeResource()})
    assert told.startswith("site gone can't be asked: ")


# ------------------------------------------------------------------ all of Dagster


class Dagster(DagsterDev):
    """With a job to launch and to terminate."""

    def launch(self) -> str:
        where = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }")
        (repository,) = where["repositoriesOrError"]["nodes"]
        selector = {
            "repositoryName": repository["name"],
            "repositoryLocationName": repository["location"]["name"],
            "jobName": "one_job",
        }
        launched = self.ask(
            "mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename "
            "... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }",
            params={"selector": selector, "runConfigData": "{}"},
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def terminate(self, run_id: str, policy: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.ask(
            "mutation ($run: String!, $policy: TerminateRunPolicy) "
            "{ terminateRun(runId: $run, terminatePolicy: $policy) { __typename } }",
            run=run_id,
            policy=policy,
        )["terminateRun"]
        assert found["__typename"] == "TerminateRunSuccess", found
        return found


def test_terminate_and_forced_terminate_in_dagsters_own_ui(desk: Desk) -> None:
    dagster = Dagster(desk.folder, DEFINITIONS, DESK=str(desk.folder))
    with dagster.running():
        run_id = dagster.launch()
        wait_until(lambda: len(desk.payloads) == 1, "the payload to run", 120)
        dagster.terminate(run_id, "SAFE_TERMINATE")
        wait_until(lambda: desk.status(run_id) is Status.CANCELED, "the run's end", 60)
        job = ended(desk, desk.jobs[0])
        assert job.state is JobState.CANCELLED
        assert job.cancel is not None
        assert job.cancel.reason == f"Dagster run {run_id} was terminated"

        run_id = dagster.launch()
        wait_until(lambda: len(desk.payloads) == 2, "the second payload to run", 120)
        run = desk.instance.get_run_by_id(run_id)
        assert run is not None
        (step,) = desk.step_processes(run_id)
        os.kill(step, signal.SIGSTOP)  # it hangs, and can't cancel anything
        dagster.terminate(run_id, "MARK_AS_CANCELED_IMMEDIATELY")
        assert desk.status(run_id) is Status.CANCELED
        wait_until(lambda: desk.jobs[0].cancel is not None, "the sensor", 120)
        job = ended(desk, desk.jobs[0])
        assert job.state is JobState.CANCELLED
        assert job.cancel is not None
        assert job.cancel.reason == f"reconciled: run {run_id} is over (CANCELED)"
        os.kill(step, signal.SIGKILL)
