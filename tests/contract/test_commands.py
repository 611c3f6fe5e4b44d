"""Slurm's commands when the controller is frozen or down, and when a site puts its own programs around them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from contract.commands_site import CommandsSite
from contract.sites import end_of, observe, run_for
from contract.test_native import frozen, stopped, unique, until
from slurmbus_agent.scheduler.array import task_name
from slurmbus_agent.scheduler.base import (
    ANY_ID,
    NoAccounting,
    Observation,
    OutcomeUnknown,
    Refused,
    Scheduler,
    Unavailable,
)
from slurmbus_agent.scheduler.limits import CallLimits
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
        ({"gres": "foo:1"}, "generic resource", "sinfo"),
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
            job = msgspec.structs.replace(
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


async def task_when(scheduler: Scheduler, array: int, name: str, wanted: Callable[[Observation], bool]) -> Observation:
    give_up = time.monotonic() + 60
    while True:
        found = [seen for seen in await scheduler.jobs() if (seen.job_id, seen.name) == (array, name)]
        if found and wanted(found[0]):
            return found[0]
        assert time.monotonic() < give_up, found
        await asyncio.sleep(0.1)


# ---- a controller in trouble


def test_a_frozen_controller(alice: CommandsSite) -> None:
    async def check() -> None:
        limits = replace(CallLimits(), fresh=3600.0)
        scheduler = alice.scheduler(limits)
        name, never = unique("late"), unique("never")
        await scheduler.ping()
        freezing = frozen(alice.cluster)
        thaw = await asyncio.to_thread(freezing.__enter__)
        try:
            # Believed to be there, it is sent the job, and may carry it out when it thaws.
            with pytest.raises(OutcomeUnknown):
                await scheduler.submit(alice.batch_job(name, "exit 0"))
            await until(lambda: not scheduler.health.responding)
            with pytest.raises(Unavailable):
                await scheduler.submit(alice.batch_job(never, "exit 0"))
            with pytest.raises(Unavailable):
                await scheduler.jobs()
            await asyncio.to_thread(thaw)
            await until(lambda: scheduler.health.responding, 60)
            await scheduler.ping()
            seen = await scheduler.jobs()
            assert len([job for job in seen if job.name == name]) <= 1
            assert not [job for job in seen if job.name == never]
            assert alice.run(["pgrep", "-xc", "sbatch"], check=False).strip() == "0"
        finally:
            await asyncio.to_thread(freezing.__exit__, None, None, None)
            await scheduler.aclose()

    asyncio.run(check())


def test_a_controller_that_is_down(alice: CommandsSite) -> None:
    async def check() -> None:
        limits = replace(CallLimits(), fresh=3600.0)
        scheduler = alice.scheduler(limits)
        name = unique("lived")
        job_id = await scheduler.submit(alice.batch_job(name, run_for(3)))
        stopping = stopped(alice.cluster, "slurmctld")
        await asyncio.to_thread(stopping.__enter__)
        try:
            with pytest.raises(Unavailable, match="connect"):  # refused connections: nothing was sent
                await scheduler.submit(alice.batch_job(unique("never"), "exit 0"))
            for _ in range(2):
                with pytest.raises(Unavailable):  # "unreachable" is never "unknown job"
                    await scheduler.job(job_id)
            with pytest.raises(Unavailable):
                await scheduler.cancel(job_id, name)
            assert not scheduler.health.responding
        finally:
            await asyncio.to_thread(stopping.__exit__, None, None, None)
        await until(lambda: scheduler.health.responding, 60)
        assert (await end_of(scheduler, job_id)).state == "COMPLETED"
        await scheduler.aclose()

    asyncio.run(check())


def test_accounting_that_is_down_leaves_the_rest_alone(alice: CommandsSite) -> None:
    async def check() -> None:
        async with alice.open() as scheduler:
            since = time.time() - 60
            name = unique("books")
            stopping = stopped(alice.cluster, "slurmdbd")
            await asyncio.to_thread(stopping.__enter__)
            try:
                job_id = await scheduler.submit(alice.batch_job(name, "exit 200"))
                done = await end_of(scheduler, job_id)
                assert (done.state, done.exit_code) == ("FAILED", 200)
                assert await scheduler.accounting_backlog() > 0
                with pytest.raises(Unavailable):
                    await scheduler.accounting([(job_id, name)], since)
                assert scheduler.health.responding
            finally:
                await asyncio.to_thread(stopping.__exit__, None, None, None)
            give_up = time.monotonic() + 90
            rows = []
            while not rows or not rows[0].final:
                assert time.monotonic() < give_up
                await asyncio.sleep(0.2)
                try:
                    rows = await scheduler.accounting([(job_id, name)], since)
                except Unavailable:
                    rows = []

    asyncio.run(check())


def test_a_site_without_accounting_says_so(alice: CommandsSite) -> None:
    conf = f"{alice.work_dir}/slurm.conf"
    alice.run(["sh", "-c", f"grep -v ^AccountingStorage /etc/slurm/slurm.conf >{conf}"])
    alice.env = {"SLURM_CONF": conf}

    async def check() -> None:
        async with alice.open() as scheduler:
            with pytest.raises(NoAccounting):
                await scheduler.accounting([(1, "any")], time.time() - 60)
            assert await scheduler.ping() > 0

    asyncio.run(check())


# ---- a site's own programs around Slurm's


def wrapped(site: CommandsSite, name: str, text: str) -> CommandsSite:
    """Put a program of this name before Slurm's on the PATH."""
    folder = f"{site.work_dir}/{unique('bin')}"
    site.run(["mkdir", folder])
    site.cluster.copy_to("login", f"#!/bin/bash\n{text}\n".encode(), f"{folder}/{name}", owner=site.user, mode=0o755)
    other = CommandsSite(site.cluster, site.user)
    other.path = folder
    return other


def test_a_wrapper_that_prints_banners(newest: CommandsSite) -> None:
    banner = (
        'echo "*** Down on Monday ***"; echo; echo warning: old >&2; /usr/bin/{0} "$@"; code=$?; echo bye; exit $code'
    )

    async def check() -> None:
        site = wrapped(newest, "sbatch", banner.format("sbatch"))
        for name in ("squeue", "sacct", "scancel", "scontrol", "sdiag"):
            site.cluster.copy_to(
                "login",
                f"#!/bin/bash\n{banner.format(name)}\n".encode(),
                f"{site.path}/{name}",
                owner="alice",
                mode=0o755,
            )
        async with site.open() as scheduler:
            name = unique("banner")
            job_id = await scheduler.submit(site.batch_job(name, run_for(300)))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            assert name in {job.name for job in await scheduler.jobs()}
            assert await scheduler.accounting_backlog() >= 0
            assert await scheduler.accounting([(job_id, "no")], time.time() - 60) == []
            assert await scheduler.partitions()
            assert await scheduler.job(999_999) is None
            assert await scheduler.cancel(job_id, name)
            assert (await end_of(scheduler, job_id)).state == "CANCELLED"
            with pytest.raises(Refused, match="Invalid partition"):
                await scheduler.submit(site.batch_job(name, "exit 0", partition="nope"))

    asyncio.run(check())


@pytest.mark.parametrize(
    "text",
    [
        '/usr/bin/sbatch "$@"; exit 1',  # it was submitted, whatever the exit code says
        '/usr/bin/sbatch "$@" >/dev/null',
        '/usr/bin/sbatch "$@" >/dev/null; echo "sbatch: error: all is lost" >&2',
        '/usr/bin/sbatch "$@" | sed "p; s/./4/g"',  # two ids
        'out=$(/usr/bin/sbatch "$@"); kill -9 $$',
        "exit 0",
        'echo "our wrapper: try again later" >&2; exit 1',
    ],
)
def test_a_wrapper_whose_answer_says_nothing_leaves_the_outcome_unknown(newest: CommandsSite, text: str) -> None:
    async def check() -> None:
        site = wrapped(newest, "sbatch", text)
        async with site.open() as scheduler:
            with pytest.raises(OutcomeUnknown):
                await scheduler.submit(site.batch_job(unique("wrapped"), "exit 0"))

    asyncio.run(check())


@pytest.mark.parametrize("text", ["exit 0", "echo nothing", '/usr/bin/squeue "$@" | head -c 20', "kill -9 $$"])
def test_a_list_of_jobs_that_did_not_come_is_no_list_without_jobs(newest: CommandsSite, text: str) -> None:
    async def check() -> None:
        site = wrapped(newest, "squeue", text)
        async with site.open() as scheduler:
            with pytest.raises(Unavailable):
                await scheduler.jobs()
            with pytest.raises(Unavailable):
                await scheduler.job(1)
            assert scheduler.health.responding
            assert scheduler.health.restarts == 0

    asyncio.run(check())


def test_a_submit_that_takes_too_long_is_killed_with_what_the_wrapper_started(newest: CommandsSite) -> None:
    async def check() -> None:
        site = wrapped(newest, "sbatch", 'case "$*" in *--version*) ;; *) sleep 4711 & wait;; esac')
        async with site.open() as scheduler:
            with pytest.raises(OutcomeUnknown, match="no answer within"):
                await scheduler.submit(site.batch_job(unique("slow"), "exit 0"))
            assert scheduler.health.restarts == 0
        assert not site.run(["pgrep", "-f", "sleep 4711"], check=False).strip()

    asyncio.run(check())


def test_missing_commands_are_told(newest: CommandsSite) -> None:
    async def check() -> None:
        site = CommandsSite(newest.cluster)
        site.env = {"SLURM_CONF": "/no/slurm.conf"}
        async with site.open() as scheduler:
            with pytest.raises(Unavailable, match=r"/no/slurm\.conf"):
                await scheduler.ping()

    asyncio.run(check())


def test_the_agents_environment_changes_nothing(newest: CommandsSite) -> None:
    async def check() -> None:
        site = CommandsSite(newest.cluster)
        site.env = {
            "SLURM_FROM_OUTSIDE": "1",
            "OTHER": "1",
            "SBATCH_PARTITION": "nope",
            "SQUEUE_FORMAT": "%i",
            "SQUEUE_STATES": "PENDING",
            "SLURM_TIME_FORMAT": "relative",
            "SLURM_CLUSTERS": "nope",
            "LANG": "de_DE.UTF-8",
            "TZ": "Asia/Tokyo",
        }
        before = time.time()
        async with site.open() as scheduler:
            name = unique("clean")
            body = 'echo "[$SLURM_FROM_OUTSIDE$OTHER$LC_ALL$TZ$SLURM_TIME_FORMAT]"'
            done = await end_of(scheduler, await scheduler.submit(site.batch_job(name, body)))
            assert done.submit_time is not None
            assert abs(done.submit_time - before) < 60
        assert newest.read(f"{site.work_dir}/{name}.out") == "[]\n"

    asyncio.run(check())
