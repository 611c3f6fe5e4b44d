"""Slurm's commands when the controller is frozen or down, and when a site puts its own programs around them."""

from __future__ import annotations

import asyncio
import time

import pytest

from contract.commands_site import CommandsSite
from contract.sites import end_of, run_for
from contract.test_native import unique
from slurmbus_agent.scheduler.array import task_name
from slurmbus_agent.scheduler.base import ANY_ID, Refused
from slurmbus_cluster import Cluster

CLUSTERS = {"26.05": "cluster", "24.11": "cluster_trixie", "22.05": "cluster_bookworm"}
pytestmark = pytest.mark.cluster


@pytest.fixture(params=CLUSTERS)
def alice(request: pytest.FixtureRequest) -> CommandsSite:
    return CommandsSite(request.getfixturevalue(CLUSTERS[request.param]))


@pytest.fixture
def newest(cluster: Cluster) -> CommandsSite:
    return CommandsSite(cluster)


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({"partition": "nope"}, "Invalid partition name specified", "main (default), gpu, short"),
        ({"mem_per_node_mib": 999_999}, "Memory specification can not be satisfied", "8 CPUs and 4000 MiB"),
        ({"account": "nope"}, "Invalid account", "sacctmgr"),
        ({"qos": "nope"}, "Invalid qos", "sacctmgr"),
        ({"reservation": "nope"}, "reservation is invalid", "scontrol show reservation"),
        ({"constraint": "nope"}, "Invalid feature", "sinfo"),
        ({"nodelist": "c9"}, "Invalid node name", "sinfo"),
        ({"gpus_per_node": "9"}, "Requested node configuration is not available", "sinfo"),
        ({"gres": "foo:1"}, "", ""),
    ],
)
def test_refusals_carry_slurms_words_and_a_hint(
    alice: CommandsSite, options: dict[str, object], words: str, hint: str
) -> None:
    async def check() -> None:
        async with alice.open() as scheduler:
            with pytest.raises(Refused, match=words) as caught:
                await scheduler.submit(alice.batch_job(unique("no"), "exit 0", **options))
            assert hint in caught.value.hint
            assert scheduler.health.responding
            assert scheduler.health.restarts == 0

    asyncio.run(check())


def test_other_jobs_of_the_user_may_have_any_name(alice: CommandsSite) -> None:
    ids = [
        int(alice.run(["sbatch", "--parsable", "-o", "/dev/null", "-J", name, "--wrap", "sleep 300"]))
        for name in ("two\nlines", "a|b,c\x1f", "'; scancel -u alice #", "JOBID", "x" * 200, "ünï")
    ]

    async def check() -> None:
        async with alice.open() as scheduler:
            name = unique("ours-with-a-rather-long-name-0123456789")
            ours = await scheduler.submit(alice.batch_job(name, run_for(300)))
            seen = {job.job_id: job.name for job in await scheduler.jobs()}
            assert seen[ours] == name
            assert set(ids) <= set(seen)
            assert await scheduler.cancel(ours, name)
            assert (await end_of(scheduler, ours)).state == "CANCELLED"
            others = [job.state for job in await scheduler.jobs() if job.job_id in ids]
            assert not {"CANCELLED", "COMPLETING"} & set(others)

    try:
        asyncio.run(check())
    finally:
        alice.run(["scancel", *map(str, ids)])


def test_the_tasks_of_an_array(alice: CommandsSite) -> None:
    async def check() -> None:
        async with alice.open() as scheduler:
            since = time.time() - 60
            name = unique("array")
            job = alice.batch_job(
                name, 'echo "task $SLURM_ARRAY_TASK_ID"; [ $SLURM_ARRAY_TASK_ID = 3 ] && exit 7; exec sleep 300'
            )
            job = replace_job(
                job, array=(1, 3, 5, 6, 7), array_throttle=2, output=f"{alice.work_dir}/{name}-{{array-task}}.out"
            )
            array = await scheduler.submit(job)
            failed = await task_when(scheduler, array, task_name(name, 3), lambda seen: seen.state == "FAILED")
            assert (failed.exit_code, failed.signal) == (7, 0)
            waiting = await task_when(scheduler, array, task_name(name, 7), lambda seen: seen.state == "PENDING")
            assert waiting.job_id == array
            one = await scheduler.job(array, 7)
            assert one is not None
            assert (one.name, one.state) == (task_name(name, 7), "PENDING")
            assert await scheduler.cancel(array, task_name(name, (6, 7)))
            await task_when(scheduler, array, task_name(name, 5), lambda seen: seen.state == "RUNNING")
            first = await scheduler.job(array, 1)
            assert first is not None
            assert first.state == "RUNNING"
            assert not await scheduler.cancel(array, task_name(unique("foreign"), 1))
            assert await scheduler.cancel(array, task_name(name, (1, 5)))
            await task_when(scheduler, array, task_name(name, 5), lambda seen: seen.state == "CANCELLED")
            assert alice.read(f"{alice.work_dir}/{name}-3.out") == "task 3\n"
            wanted = [(array, task_name(name, 3)), (ANY_ID, task_name(name, 1))]
            give_up = time.monotonic() + 60
            while len(rows := [row for row in await scheduler.accounting(wanted, since) if row.final]) < 2:
                assert time.monotonic() < give_up, rows
                await asyncio.sleep(0.2)
            assert {(row.job_id, row.name, row.accounting.state) for row in rows} == {
                (array, task_name(name, 3), "FAILED"),
                (array, task_name(name, 1), "CANCELLED"),
            }

    asyncio.run(check())
