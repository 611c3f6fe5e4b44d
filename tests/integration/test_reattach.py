"""Steps of Dagster that are killed while their job runs on the real cluster: one Slurm job, whatever happens."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from contract.bus_site import wait_until
from contract.scripted_jobs import handles_of, log_of
from contract.test_dagster_reattach import (
    FIRST,
    REST,
    Desk,
    assert_one_job_and_all_of_it,
    desk_at,
    start_and_kill,
)
from dagster_slurmbus import PipesSlurmClient, slurmbus_reconcile_sensor
from integration.conftest import SITES
from slurmbus.client import SiteClient
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_protocol.states import JobState

SITE = SITES["alice"]


class ClusterDesk(Desk):
    """What payloads leave behind lies in Alice's home on the cluster."""

    cluster: Cluster
    there: str

    @property
    def payloads(self) -> list[str]:
        return self.cluster.exec("login", ["cat", f"{self.there}/count"], user="alice", check=False).stdout.splitlines()

    def go(self) -> None:
        self.cluster.exec("login", ["touch", f"{self.there}/go"], user="alice")

    @property
    def slurm_jobs(self) -> list[str]:
        """The state of every job of this desk that Slurm's accounting knows, those that ran twice included."""
        names = ",".join(f"{record.name}.{record.key}" for record in self.jobs)
        command = ["sacct", "-a", "-X", "-n", "-P", "-D", "-S", "now-1hour", "--name", names, "-o", "JobID,State"]
        return self.cluster.exec("ctld", command).stdout.splitlines()


@pytest.fixture
def desk(
    cluster: Cluster, home: Home, alice: SiteClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClusterDesk]:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    there = f"/home/alice/desk-{secrets.token_hex(4)}"
    cluster.exec("login", ["mkdir", there], user="alice")
    with desk_at(tmp_path, alice, ClusterDesk) as desk:
        desk.cluster, desk.there = cluster, there
        desk.environment |= {"SITE": SITE, "THERE": there}
        yield desk
        for record in desk.jobs:
            if not record.state.is_final:  # only when a test has failed
                alice.cancel(record.key)


def assert_one_slurm_job(desk: ClusterDesk, job_id: int | None) -> None:
    wait_until(lambda: desk.slurm_jobs == [f"{job_id}|COMPLETED"], "accounting to know one job, completed", 60)


def test_a_killed_step_that_is_retried_goes_on_with_its_slurm_job(desk: ClusterDesk) -> None:
    run_id = start_and_kill(desk, "retried")
    (before,) = desk.jobs
    wait_until(lambda: len(handles_of(desk.instance, run_id)) == 2, "the retry to find the job", 120)
    desk.go()
    assert desk.workers[-1].wait(120) == 0
    assert_one_job_and_all_of_it(desk, run_id)
    lines = log_of(desk.instance, run_id)
    assert [lines.count(text) for text in ("said early", "said late")] == [1, 1]
    (materialization,) = desk.materializations(run_id)
    assert materialization.metadata["slurmbus/job_id"].value == before.job_id
    assert_one_slurm_job(desk, before.job_id)


def test_a_reexecution_from_failure_finds_the_slurm_job_that_has_ended_meanwhile(desk: ClusterDesk) -> None:
    killed = start_and_kill(desk)
    (before,) = desk.jobs
    desk.workers[-1].wait(60)
    desk.go()
    wait_until(lambda: desk.jobs[0].state.is_final, "the job to end", 60)
    again = desk.run(parent=killed, how="tagged").run_id
    assert_one_job_and_all_of_it(desk, again, FIRST + REST)
    assert_one_slurm_job(desk, before.job_id)


def test_other_resources_end_the_slurm_job_before_another_one_is_submitted(desk: ClusterDesk) -> None:
    killed = start_and_kill(desk)
    (before,) = desk.jobs
    desk.workers[-1].wait(60)
    worker = desk.start(parent=killed, how="tagged", CPUS="2")
    wait_until(lambda: len(desk.payloads) == 2 or worker.poll() is not None, "the second payload to run", 120)
    desk.go()
    assert worker.wait(120) == 0
    assert desk.status(desk.last_run.run_id) is dg.DagsterRunStatus.SUCCESS
    after, ended = desk.jobs
    assert (ended.key, ended.state, after.state) == (before.key, JobState.CANCELLED, JobState.COMPLETED)
    assert after.alloc_cpus == 2
    assert ended.end_time is not None
    assert after.start_time is not None
    assert after.start_time >= ended.end_time - 1  # Slurm counts whole seconds
    assert len(desk.slurm_jobs) == 2


def test_the_sensor_ends_the_slurm_job_of_a_run_that_was_cancelled_by_force(desk: ClusterDesk) -> None:
    worker = desk.start()
    wait_until(lambda: desk.payloads or worker.poll() is not None, "the payload to run", 60)
    run = desk.last_run
    for process in (worker.pid, *desk.step_processes(run.run_id)):
        os.kill(process, signal.SIGKILL)
    desk.instance.report_run_canceled(run)
    (job,) = desk.jobs
    resources = {"slurm": PipesSlurmClient(site=SITE)}
    with dg.build_sensor_context(instance=desk.instance, resources=resources) as context:
        told = slurmbus_reconcile_sensor("slurm").evaluate_tick(context).skip_message or ""
    assert told == (
        f"Slurm job {job.job_id} ({job.key}) on site {SITE} was cancelled: run {run.run_id} is over (CANCELED)"
    )
    assert job.job_id is not None
    desk.cluster.wait_job(job.job_id, ["CANCELLED"])
