"""Interrupted steps: a person's Terminate ends the job, a redeploy leaves it alone."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import asyncio
import os
import signal

import dagster as dg
import pytest

from contract.scripted_jobs import DagsterSite, ScriptedJob, handles_of, log_of, output_of
from dagster_slurmbus import PipesSlurmClient
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


class Interrupted:
    """A run that is interrupted while its job runs; as signals go to the main thread, the run is in this process."""

    def __init__(
        self,
        slurm: DagsterSite,
        instance: dg.DagsterInstance,
        *,
        terminate: bool,
        stubborn: bool = False,
        ends_when_found_again: bool = False,
    ) -> None:
        self.slurm = slurm
        self.instance = instance
        self.terminate = terminate
        self.stubborn = stubborn
        self.ends_when_found_again = ends_when_found_again
        self.over = asyncio.Event()
        slurm.script = self.script

    async def script(self, job: ScriptedJob) -> None:
        await job.begin()
        await job.write(Stream.STDOUT, b"working\n")
        run_id = job.spec.labels["dagster_run"]
        if self.terminate:
            run = self.instance.get_run_by_id(run_id)
            assert run is not None
            self.instance.report_run_canceling(run)
        os.kill(os.getpid(), signal.SIGINT)
        if self.ends_when_found_again:
            while len(handles_of(self.instance, run_id)) < 2:
                await asyncio.sleep(0.05)
            await job.write(Stream.STDOUT, b"worked\n")
            await job.end()
            return
        waiting = [asyncio.create_task(self.over.wait())]
        if not self.stubborn:
            waiting.append(asyncio.create_task(job.cancelled.wait()))
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        for task in waiting:
            task.cancel()
        if job.cancel is not None:
            await job.end(JobState.CANCELLED, exit_code=None, signal=15)

    def run(self, client: PipesSlurmClient, retry_policy: dg.RetryPolicy | None = None) -> dg.ExecuteInProcessResult:
        @dg.asset(retry_policy=retry_policy)
        def thing(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):  # type: ignore[no-untyped-def]  # noqa: ANN202
            return slurm.run(context=context, command="true").get_materialize_result()

        result = dg.materialize([thing], resources={"slurm": client}, instance=self.instance, raise_on_error=False)
        self.slurm.do(self.over.set)
        return result


@pytest.mark.parametrize("retry_policy", [None, dg.RetryPolicy(max_retries=2)])
def test_terminate_cancels_the_job_and_the_run_is_canceled(
    slurm: DagsterSite,
    instance: dg.DagsterInstance,
    retry_policy: dg.RetryPolicy | None,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    result = Interrupted(slurm, instance, terminate=True).run(slurm.client, retry_policy)
    assert signal.getsignal(signal.SIGINT) == before
    (job,) = slurm.jobs
    assert job.cancel is not None
    assert job.cancel.reason == f"Dagster run {result.run_id} was terminated"
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    lines = log_of(instance, result.run_id)
    assert f"the run was terminated: cancelling job {job.submit.key} on site scripted" in lines
    assert "Slurm job 100 is CANCELLED on c1" in lines


def test_a_redeploy_only_detaches_and_says_how_to_find_the_job(
    slurm: DagsterSite,
    instance: dg.DagsterInstance,
) -> None:
    result = Interrupted(slurm, instance, terminate=False).run(slurm.client)
    (job,) = slurm.jobs
    assert job.cancel is None
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    lines = log_of(instance, result.run_id)
    assert any(f"See it with 'slurmbus logs -f {job.submit.key}'" in line for line in lines)
    assert [handle.external_run_id for handle in handles_of(instance, result.run_id)] == [job.submit.key]


def test_a_detached_step_with_a_retry_policy_goes_on_with_its_job(
    slurm: DagsterSite,
    instance: dg.DagsterInstance,
) -> None:
    result = Interrupted(slurm, instance, terminate=False, ends_when_found_again=True).run(
        slurm.client, dg.RetryPolicy(max_retries=2)
    )
    assert result.success
    (job,) = slurm.jobs
    assert job.cancel is None
    assert [handle.external_run_id for handle in handles_of(instance, result.run_id)] == [job.submit.key] * 2
    assert output_of(result, instance)[0] == b"working\nworked\n"


def test_a_client_may_leave_jobs_alone(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    client = PipesSlurmClient(site="scripted", bus=slurm.bus, forward_termination=False)
    Interrupted(slurm, instance, terminate=True).run(client)
    assert slurm.jobs[0].cancel is None


def test_a_run_that_vanishes_with_its_process_takes_its_job_along(slurm: DagsterSite) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        Interrupted(slurm, instance, terminate=False).run(slurm.client)
    assert slurm.jobs[0].cancel is not None


def test_a_job_that_does_not_end_holds_the_run_up_for_so_long_only(
    slurm: DagsterSite,
    instance: dg.DagsterInstance,
) -> None:
    client = PipesSlurmClient(site="scripted", bus=slurm.bus, termination_timeout_seconds=0.2)
    result = Interrupted(slurm, instance, terminate=True, stubborn=True).run(client)
    lines = log_of(instance, result.run_id)
    assert any("has been told to end and hasn't yet" in line for line in lines)
