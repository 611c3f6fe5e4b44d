"""What only local jobs have to withstand; what they share with Slurm stands in tests/contract."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slurmbus_agent.runner.launch_allocation import Allocation
from slurmbus_agent.scheduler import local_job
from slurmbus_agent.scheduler.base import BatchJob, Observation, Refused, Unavailable
from slurmbus_agent.scheduler.local import LocalScheduler
from slurmbus_protocol.messages import JobOptions


def batch_job(folder: Path, body: str, name: str = "job", **options: object) -> BatchJob:
    return BatchJob(
        name=name,
        script=f"#!/bin/bash\n{body}\n",
        work_dir=str(folder),
        output=str(folder / f"{name}.out"),
        environment={"PATH": "/usr/bin:/bin"},
        options=JobOptions(**options),  # type: ignore[arg-type]
    )


def until(condition: Callable[[], bool], within: float = 10) -> None:
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up, condition
        time.sleep(0.01)


async def state_of(scheduler: LocalScheduler, job_id: int, *states: str) -> Observation:
    give_up = time.monotonic() + 10
    while True:
        seen = await scheduler.job(job_id)
        assert seen is not None
        if seen.state in states and "COMPLETING" not in seen.flags:
            return seen
        assert time.monotonic() < give_up, seen
        await asyncio.sleep(0.005)


def _words_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return b""


def supervisor_of(folder: Path, job_id: int) -> int:
    command = f"local_job.py\0{folder}\0{job_id}\0".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _words_of(process).endswith(command):
            return int(process.name)
    raise AssertionError(f"job {job_id} has no supervisor")


def test_a_killed_supervisor_is_a_failed_node_and_takes_the_payload_along(tmp_path: Path) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        job_id = await scheduler.submit(batch_job(tmp_path, "setsid sleep 300 & sleep 300"))
        await state_of(scheduler, job_id, "RUNNING")
        mark = local_job.mark_of(str(tmp_path / "jobs"), job_id)
        until(lambda: len(local_job.processes(mark)) == 3)
        os.kill(supervisor_of(tmp_path / "jobs", job_id), signal.SIGKILL)
        done = await state_of(scheduler, job_id, "NODE_FAIL")
        assert done.end_time is not None
        assert done.exit_code is None
        until(lambda: not local_job.processes(mark))
        assert [row.final for row in await scheduler.accounting([(job_id, "job")], 0)] == [True]

    asyncio.run(check())


def test_a_reused_pid_is_not_taken_for_the_supervisor(tmp_path: Path) -> None:
    """After a restart of the machine nobody has the control pipe open, whoever has the supervisor's old pid."""

    async def check() -> None:
        folder = tmp_path / "jobs"
        scheduler = LocalScheduler(folder)
        job_id = await scheduler.submit(batch_job(tmp_path, "sleep 300"))
        await state_of(scheduler, job_id, "RUNNING")
        os.kill(supervisor_of(folder, job_id), signal.SIGKILL)
        until(lambda: not _has_reader(folder / f"{job_id}.control"))
        assert [job.state for job in await LocalScheduler(folder).jobs()] == ["NODE_FAIL"]

    asyncio.run(check())


def _has_reader(pipe: Path) -> bool:
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
def test_a_cancel_finds_processes_that_left_the_session(tmp_path: Path, trap: str) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs", kill_wait=0.2)
        job_id = await scheduler.submit(batch_job(tmp_path, f"{trap} setsid sleep 300 & sleep 300 & wait; wait"))
        mark = local_job.mark_of(str(tmp_path / "jobs"), job_id)
        until(lambda: len(local_job.processes(mark)) == 3)
        assert await scheduler.cancel(job_id, "job")
        await state_of(scheduler, job_id, "CANCELLED")
        assert local_job.processes(mark) == []

    asyncio.run(check())


def test_what_a_script_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        job_id = await scheduler.submit(batch_job(tmp_path, "nohup setsid sleep 300 & exit 4"))
        done = await state_of(scheduler, job_id, "FAILED")
        assert done.exit_code == 4
        assert local_job.processes(local_job.mark_of(str(tmp_path / "jobs"), job_id)) == []

    asyncio.run(check())


SUBMIT = """
import asyncio, sys
from pathlib import Path
from slurmbus_agent.scheduler.base import BatchJob
from slurmbus_agent.scheduler.local import LocalScheduler
from slurmbus_protocol.messages import JobOptions

async def main():
    folder = Path(sys.argv[1])
    scheduler = LocalScheduler(folder / "jobs")
    job = BatchJob(name="job", script="#!/bin/bash\\n" + sys.argv[3], work_dir=str(folder),
                   output=str(folder / "out"), environment={"PATH": "/usr/bin:/bin"}, options=JobOptions())
    print(*await asyncio.gather(*(scheduler.submit(job) for _ in range(int(sys.argv[2])))), flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def test_ids_are_unique_across_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUBMIT, str(tmp_path), "8", "exit 0"]
    outputs = []
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        outputs.append([int(word) for word in process.communicate(timeout=60)[0].split()])
        assert process.returncode == 0
    ids = [job_id for output in outputs for job_id in output]
    assert sorted(ids) == list(range(1, 25))

    async def all_end() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        for job_id in ids:
            await state_of(scheduler, job_id, "COMPLETED")

    asyncio.run(all_end())


def test_a_job_outlives_the_killed_process_that_submitted_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUBMIT, str(tmp_path), "1", "read -r < go; exit 5"]
    os.mkfifo(tmp_path / "go")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        job_id = int(process.stdout.readline())
        process.kill()

    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        await state_of(scheduler, job_id, "RUNNING")
        (tmp_path / "go").write_text("on\n")
        assert (await state_of(scheduler, job_id, "FAILED")).exit_code == 5

    asyncio.run(check())


def test_a_submit_that_was_killed_half_way_left_no_job(tmp_path: Path) -> None:
    async def check() -> None:
        folder = tmp_path / "jobs"
        scheduler = LocalScheduler(folder)
        first = await scheduler.submit(batch_job(tmp_path, "exit 0"))
        await state_of(scheduler, first, "COMPLETED")
        # What stands in the folder when the process is killed before it started the supervisor.
        (folder / f"{first + 1}.spec").write_text("{}")
        (folder / f"{first + 1}.draft").write_bytes((folder / f"{first}.json").read_bytes())
        assert [job.job_id for job in await scheduler.jobs()] == [first]
        assert await scheduler.job(first + 1) is None
        assert await scheduler.submit(batch_job(tmp_path, "exit 0")) == first + 2
        await state_of(scheduler, first + 2, "COMPLETED")

    asyncio.run(check())


def test_one_file_of_a_finished_job_is_left_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    async def check() -> None:
        folder = tmp_path / "jobs"
        scheduler = LocalScheduler(folder)
        job_id = await scheduler.submit(batch_job(tmp_path, "exit 0"))
        await state_of(scheduler, job_id, "COMPLETED")
        until(lambda: {file.name for file in folder.iterdir()} == {f"{job_id}.json", "last-id", "supervisors.log"})
        assert {file.stat().st_mode & 0o077 for file in [folder, *folder.iterdir()]} == {0}
        assert (folder / "supervisors.log").read_text() == ""

    asyncio.run(check())


def test_a_finished_job_is_forgotten_but_by_accounting(tmp_path: Path) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        job_id = await scheduler.submit(batch_job(tmp_path, "exit 0"))
        await state_of(scheduler, job_id, "COMPLETED")
        later = LocalScheduler(tmp_path / "jobs", min_job_age=0)
        assert await later.job(job_id) is None
        assert await later.jobs() == []
        assert not await later.cancel(job_id, "job")
        assert [row.job_id for row in await later.accounting([(job_id, "job")], 0)] == [job_id]

    asyncio.run(check())


def test_a_state_emptied_by_a_power_cut_is_an_unknown_job(tmp_path: Path) -> None:
    async def check() -> None:
        folder = tmp_path / "jobs"
        folder.mkdir()
        (folder / "7.json").touch()
        scheduler = LocalScheduler(folder)
        assert await scheduler.jobs() == []
        assert await scheduler.job(7) is None

    asyncio.run(check())


def test_tasks_and_cpus_reach_the_job(tmp_path: Path) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        body = 'echo "$SLURM_NTASKS $SLURM_CPUS_PER_TASK $SLURMBUS_SCHEDULER $SLURM_SUBMIT_DIR $SLURMD_NODENAME"'
        job_id = await scheduler.submit(batch_job(tmp_path, body, ntasks=2, cpus_per_task=3))
        done = await state_of(scheduler, job_id, "COMPLETED")
        assert done.alloc_cpus == 6
        node = os.uname().nodename
        assert (tmp_path / "job.out").read_text() == f"2 3 local {tmp_path} {node}\n"

    asyncio.run(check())


@pytest.mark.parametrize(
    ("options", "tasks"), [({}, 1), ({"ntasks": 4}, 4), ({"ntasks_per_node": 3}, 3), ({"ntasks": 4, "nodes": 1}, 4)]
)
def test_launchers_find_the_tasks_of_a_job(tmp_path: Path, options: dict[str, int], tasks: int) -> None:
    """By the variables that the job gets, and none of this test's own."""

    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        job_id = await scheduler.submit(batch_job(tmp_path, "env", **options))
        await state_of(scheduler, job_id, "COMPLETED")
        lines = (tmp_path / "job.out").read_text().splitlines()
        found = Allocation.from_environment(dict(line.split("=", 1) for line in lines if "=" in line))
        assert ([node.tasks for node in found.nodes], found.local) == ([tasks], True)

    asyncio.run(check())


def test_nothing_is_done_after_the_lease(tmp_path: Path) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        scheduler.lease_deadline = lambda: now + 3600
        job_id = await scheduler.submit(batch_job(tmp_path, "sleep 300"))
        for over in (now, None):
            scheduler.lease_deadline = lambda over=over: over
            with pytest.raises(Unavailable, match="lease"):
                await scheduler.submit(batch_job(tmp_path, "exit 0"))
            with pytest.raises(Unavailable, match="lease"):
                await scheduler.cancel(job_id, "job")
        assert [job.job_id for job in await scheduler.jobs()] == [job_id]
        scheduler.lease_deadline = None
        assert await scheduler.cancel(job_id, "job")
        await state_of(scheduler, job_id, "CANCELLED")

    asyncio.run(check())


def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    async def check() -> None:
        (tmp_path / "file").touch()
        scheduler = LocalScheduler(tmp_path / "file" / "jobs")
        with pytest.raises(Unavailable, match="can't be used"):
            await scheduler.submit(batch_job(tmp_path, "exit 0"))
        assert not scheduler.health.responding

    asyncio.run(check())


def test_no_zombies_are_left(tmp_path: Path) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        job_id = await scheduler.submit(batch_job(tmp_path, "exit 0"))
        supervisor = Path(f"/proc/{supervisor_of(tmp_path / 'jobs', job_id)}")
        await state_of(scheduler, job_id, "COMPLETED")
        give_up = time.monotonic() + 10
        while supervisor.exists():  # noqa: ASYNC240 - /proc doesn't block
            assert time.monotonic() < give_up
            await scheduler.ping()

    asyncio.run(check())


def test_options_that_would_make_another_job_are_refused_here(tmp_path: Path) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs")
        for options in ({"dependency": "afterok:1"}, {"begin": "now"}, {"deadline": "now"}, {"hold": True}):
            with pytest.raises(Refused, match=f"{next(iter(options))} has no meaning on this machine"):
                await scheduler.submit(batch_job(tmp_path, "true", **options))
        job_id = await scheduler.submit(batch_job(tmp_path, "true", licenses="matlab", nodes_max=3, extra={"new": "1"}))
        await state_of(scheduler, job_id, "COMPLETED")

    asyncio.run(check())


@pytest.mark.parametrize(("signal_option", "state"), [("B:USR1@120", "COMPLETED"), ("USR1@120", "TIMEOUT")])
def test_the_batch_script_gets_the_signal_before_its_limit(tmp_path: Path, signal_option: str, state: str) -> None:
    async def check() -> None:
        scheduler = LocalScheduler(tmp_path / "jobs", minute=0.5)
        script = "trap 'exit 0' USR1; while true; do sleep 0.05; done"
        job_id = await scheduler.submit(batch_job(tmp_path, script, time_limit_minutes=4, signal=signal_option))
        await state_of(scheduler, job_id, state)

    asyncio.run(check())
