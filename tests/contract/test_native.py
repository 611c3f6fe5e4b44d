"""What only Slurm does, and what it does when it is frozen, down or busy; on the real cluster."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import msgspec
import pytest

from contract.native_site import PARENT, PYTHON, NativeSite
from contract.sites import end_of, has_ended, observe, run_for
from slurmbus_agent.scheduler.base import BatchJob, OutcomeUnknown, Refused, Unavailable
from slurmbus_agent.scheduler.limits import CallLimits
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_cluster import Cluster

LIMITS = CallLimits()


@pytest.fixture
def alice(cluster: Cluster) -> NativeSite:
    return NativeSite(cluster)


def unique(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:12]}"


async def until(condition: Callable[[], bool], within: float = 30) -> None:
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(site: NativeSite, limits: CallLimits = LIMITS) -> AsyncIterator[ChildScheduler]:
    scheduler = site.scheduler(limits)
    try:
        yield scheduler
    finally:
        await scheduler.aclose()


@contextmanager
def frozen(cluster: Cluster, daemon: str = "slurmctld") -> Iterator[Callable[[], None]]:
    """Freeze a daemon; it thaws at the end, or when the given function is called."""
    thawed = False

    def thaw() -> None:
        nonlocal thawed
        if not thawed:
            cluster.daemon("thaw", daemon)
            thawed = True

    cluster.daemon("freeze", daemon)
    try:
        yield thaw
    finally:
        thaw()


@contextmanager
def stopped(cluster: Cluster, daemon: str) -> Iterator[None]:
    cluster.daemon("stop", daemon)
    try:
        yield
    finally:
        cluster.daemon("start", daemon)


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({"partition": "nope"}, "Invalid partition name specified", "main (default), gpu, short"),
        ({"mem_per_node_mib": 999_999}, "Requested node configuration is not available", "8 CPUs and 4000 MiB"),
        ({"mem_per_cpu_mib": 999_999}, "Requested node configuration is not available", "main has 2 nodes"),
        ({"account": "nope"}, "Invalid account", "sacctmgr"),
        ({"qos": "nope"}, "Invalid qos", "sacctmgr"),
        ({"reservation": "nope"}, "reservation is invalid", "scontrol show reservation"),
        ({"constraint": "nope"}, "Invalid feature", "sinfo"),
        ({"nodelist": "c9"}, "Invalid node name", "sinfo"),
        ({"gpus_per_node": "9"}, "Requested node configuration is not available", "sinfo"),
        ({"gres": "foo:1"}, "generic resource", "sinfo"),
        ({"gres": "gpu:a:b:c"}, "Invalid specifier", ""),
    ],
)
def test_refusals_carry_slurms_words_and_a_hint(
    alice: NativeSite, options: dict[str, object], words: str, hint: str
) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            with pytest.raises(Refused, match=words) as caught:
                await scheduler.submit(alice.batch_job(unique("no"), "exit 0", **options))
            assert hint in caught.value.hint
            assert scheduler.health.responding
            assert scheduler.health.restarts == 0

    asyncio.run(check())


def test_what_slurm_prints_is_part_of_the_refusal(alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            with pytest.raises(Refused, match="Memory specification can not be satisfied"):
                await scheduler.submit(alice.batch_job(unique("no"), "exit 0", mem_per_node_mib=999_999))

    asyncio.run(check())


def test_every_option_reaches_slurm(alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            name = unique("options")
            job = alice.batch_job(
                name,
                run_for(60),
                partition="gpu",
                account="research",
                qos="normal",
                time_limit_minutes=7,
                nodes=2,
                ntasks_per_node=2,
                cpus_per_task=2,
                mem_per_cpu_mib=100,
                gpus_per_node="1",
                exclusive=True,
            )
            job_id = await scheduler.submit(msgspec.structs.replace(job, comment="for people"))
            running = await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            shown = alice.cluster.job(job_id)
            await scheduler.cancel(job_id, name)
            await end_of(scheduler, job_id)
            assert shown["partition"] == "gpu"
            assert shown["account"] == "research"
            assert shown["qos"] == "normal"
            assert shown["time_limit"]["number"] == 7  # type: ignore[index]
            assert shown["node_count"]["number"] == 2  # type: ignore[index]
            assert shown["tasks"]["number"] == 4  # type: ignore[index]
            assert shown["tasks_per_node"]["number"] == 2  # type: ignore[index]
            assert shown["cpus_per_task"]["number"] == 2  # type: ignore[index]
            assert shown["memory_per_cpu"]["number"] == 100  # type: ignore[index]
            assert shown["tres_per_node"] == "gres/gpu:1"
            assert shown["comment"] == "for people"
            assert shown["requeue"] is False
            assert (running.nodes, running.alloc_cpus) == (2, 16)  # all that its two nodes have
            assert shown["current_working_directory"] == alice.work_dir

    asyncio.run(check())


def test_more_tasks_than_a_node_has_cpus_run_on_several(alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            job_id = await scheduler.submit(alice.batch_job(unique("wide"), "exit 0", ntasks=12, mem_per_cpu_mib=50))
            done = await end_of(scheduler, job_id)
            assert (done.state, done.nodes) == ("COMPLETED", 2)
            narrow = await scheduler.submit(alice.batch_job(unique("narrow"), "exit 0", ntasks=4, mem_per_cpu_mib=50))
            assert (await end_of(scheduler, narrow)).nodes == 1

    asyncio.run(check())


def test_whole_exit_codes_also_in_accounting(alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            since = time.time() - 60
            name = unique("exit")
            job_id = await scheduler.submit(alice.batch_job(name, "exit 200"))
            assert (await end_of(scheduler, job_id)).exit_code == 200
            give_up = time.monotonic() + 30
            while not (rows := await scheduler.accounting([(job_id, name)], since)) or not rows[0].final:
                assert time.monotonic() < give_up
            assert rows[0].accounting.exit_code == 200
            assert "cpu=1" in rows[0].accounting.alloc_tres
            assert await scheduler.accounting_backlog() >= 0

    asyncio.run(check())


def test_accounting_shows_what_came_after_its_first_question(alice: NativeSite) -> None:
    """The kept connection's transaction shows the first question's moment for ever, unless it is ended."""

    async def check() -> None:
        async with opened(alice) as scheduler:
            since = time.time() - 60
            name = unique("later")
            job_id = await scheduler.submit(alice.batch_job(name, run_for(300)))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            assert not any(row.final for row in await scheduler.accounting([(job_id, name)], since))
            await scheduler.cancel(job_id, name)
            await end_of(scheduler, job_id)
            await accounted(scheduler, job_id, name, since)
            (row,) = await scheduler.accounting([(job_id, name)], since)
            assert row.accounting.state == "CANCELLED"

    asyncio.run(check())


def test_only_the_users_own_jobs(cluster: Cluster, alice: NativeSite) -> None:
    async def check() -> None:
        bob = NativeSite(cluster, "bob")
        async with opened(alice) as scheduler, opened(bob) as others:
            name = unique("of-alice")
            job_id = await scheduler.submit(alice.batch_job(name, run_for(60)))
            assert job_id in {job.job_id for job in await scheduler.jobs()}
            assert job_id not in {job.job_id for job in await others.jobs()}
            # One job can be looked at by anybody; ending it is another matter.
            with pytest.raises(Refused, match=r"denied|permission"):
                await others.cancel(job_id, name)
            assert await scheduler.cancel(job_id, name)
            assert (await end_of(scheduler, job_id)).state == "CANCELLED"

    asyncio.run(check())


def test_a_job_of_a_foreign_alphabet_does_not_hide_the_others(alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            alice.run(["bash", "-c", "sbatch -J $'not-utf8-\\xff' --wrap='sleep 30' -o /dev/null"])
            name = unique("mine")
            job_id = await scheduler.submit(alice.batch_job(name, "exit 0"))
            assert name in {job.name for job in await scheduler.jobs()}
            await end_of(scheduler, job_id)
            alice.run(["bash", "-c", "scancel -n $'not-utf8-\\xff'"])

    asyncio.run(check())


def test_a_requeue_is_seen(alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            name = unique("requeue")
            since = time.time() - 60
            job_id = await scheduler.submit(alice.batch_job(name, run_for(300), requeue=True))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            alice.run(["scontrol", "requeue", str(job_id)])
            between = await observe(scheduler, job_id, lambda job: job.state != "RUNNING")
            assert between.state == "PENDING"
            assert between.exit_code is None
            assert not any(row.final for row in await scheduler.accounting([(job_id, name)], since))
            again = await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            assert again.restarts == 1
            await scheduler.cancel(job_id, name)
            assert (await end_of(scheduler, job_id)).state == "CANCELLED"

    asyncio.run(check())


def test_a_node_that_dies(cluster: Cluster, alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            job_id = await scheduler.submit(alice.batch_job(unique("node"), run_for(300), nodelist="c2"))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            await asyncio.to_thread(cluster.kill_host, "c2")
            try:
                done = await end_of(scheduler, job_id, within=120)
                assert done.state == "NODE_FAIL"
            finally:
                await asyncio.to_thread(cluster.start_host, "c2")
                await asyncio.to_thread(cluster.wait_idle)

    asyncio.run(check())


def test_a_waiting_job_shows_its_reason_and_can_be_cancelled(alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            name = unique("big")
            # Both jobs want the whole of both nodes: the second one waits.
            first = await scheduler.submit(alice.batch_job(unique("first"), run_for(300), nodes=2, exclusive=True))
            await observe(scheduler, first, lambda job: job.state == "RUNNING")
            job_id = await scheduler.submit(alice.batch_job(name, run_for(300), nodes=2, exclusive=True))
            waiting = await observe(scheduler, job_id, lambda job: job.reason is not None)
            assert (waiting.state, waiting.reason) in {("PENDING", "Resources"), ("PENDING", "Priority")}
            assert (waiting.start_time, waiting.end_time, waiting.node_list) == (None, None, None)
            assert await scheduler.cancel(job_id, name)
            assert (await end_of(scheduler, job_id)).state == "CANCELLED"
            seen = await scheduler.job(first)
            assert seen is not None
            await scheduler.cancel(first, seen.name)
            await end_of(scheduler, first)

    asyncio.run(check())


def test_what_a_call_of_a_frozen_controller_does(cluster: Cluster, alice: NativeSite) -> None:
    """The event loop goes on, health says since when, nothing piles up, and all is well after the thaw."""

    async def check() -> None:
        longest = 0.0
        ticking = True

        async def tick() -> None:
            nonlocal longest
            while ticking:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)

        async with opened(alice, replace(LIMITS, fresh=0.0)) as scheduler:
            await scheduler.ping()
            up_since = scheduler.health.since
            freezing = frozen(cluster)
            thaw = await asyncio.to_thread(freezing.__enter__)
            try:
                clock = asyncio.create_task(tick())
                name = unique("never")
                begun = time.monotonic()
                with pytest.raises(Unavailable, match="ping"):
                    await scheduler.submit(alice.batch_job(name, "exit 0"))
                assert time.monotonic() - begun < 10
                health = scheduler.health
                assert not health.responding
                assert health.since > up_since
                begun = time.monotonic()
                for _ in range(20):
                    with pytest.raises(Unavailable, match="doesn't respond"):
                        await scheduler.jobs()
                assert time.monotonic() - begun < 1
                await until(lambda: time.time() - health.since > 5)
                assert scheduler.health.since == health.since
                await asyncio.to_thread(thaw)
                await until(lambda: scheduler.health.responding)
                ticking = False
                await clock
                assert longest < 1, "the event loop was held up"
                assert name not in {job.name for job in await scheduler.jobs()}
                await end_of(scheduler, await scheduler.submit(alice.batch_job(name, "exit 0")))
            finally:
                await asyncio.to_thread(freezing.__exit__, None, None, None)

    asyncio.run(check())


def test_a_submit_that_met_a_frozen_controller_is_found_after_a_ping(cluster: Cluster, alice: NativeSite) -> None:
    async def check() -> None:
        limits = replace(LIMITS, fresh=3600.0, control=2.0)
        async with opened(alice, limits) as scheduler:
            await scheduler.ping()
            name = unique("late")
            freezing = frozen(cluster)
            thaw = await asyncio.to_thread(freezing.__enter__)
            try:
                with pytest.raises(OutcomeUnknown):
                    await scheduler.submit(alice.batch_job(name, "exit 0"))
                await asyncio.to_thread(thaw)
                await until(lambda: scheduler.health.responding)
                await scheduler.ping()
                give_up = time.monotonic() + 30
                while not (found := [job for job in await scheduler.jobs() if job.name == name]):
                    assert time.monotonic() < give_up
                assert len(found) == 1
                await end_of(scheduler, found[0].job_id)
                assert scheduler.health.restarts >= 1
            finally:
                await asyncio.to_thread(freezing.__exit__, None, None, None)

    asyncio.run(check())


def test_a_controller_that_is_down(cluster: Cluster, alice: NativeSite) -> None:
    async def check() -> None:
        async with opened(alice) as scheduler:
            name = unique("lived")
            job_id = await scheduler.submit(alice.batch_job(name, run_for(3)))
            stopping = stopped(cluster, "slurmctld")
            await asyncio.to_thread(stopping.__enter__)
            try:
                for _ in range(3):
                    with pytest.raises(Unavailable):  # "unreachable" is never "unknown job"
                        await scheduler.job(job_id)
                with pytest.raises(Unavailable):
                    await scheduler.submit(alice.batch_job(unique("never"), "exit 0"))
                with pytest.raises(Unavailable):
                    await scheduler.cancel(job_id, name)
                assert not scheduler.health.responding
            finally:
                await asyncio.to_thread(stopping.__exit__, None, None, None)
            await until(lambda: scheduler.health.responding)
            assert (await end_of(scheduler, job_id)).state == "COMPLETED"

    asyncio.run(check())


@pytest.mark.parametrize("trouble", ["frozen", "stopped"])
def test_accounting_in_trouble_leaves_the_rest_alone(cluster: Cluster, alice: NativeSite, trouble: str) -> None:
    async def check() -> None:
        async with opened(alice, replace(LIMITS, read=3.0)) as scheduler:
            since = time.time() - 60
            name = unique("books")
            job_id = await scheduler.submit(alice.batch_job(name, "exit 0"))
            await end_of(scheduler, job_id)
            await accounted(scheduler, job_id, name, since)
            making = frozen(cluster, "slurmdbd") if trouble == "frozen" else stopped(cluster, "slurmdbd")
            await asyncio.to_thread(making.__enter__)
            try:
                with pytest.raises(Unavailable):
                    await scheduler.accounting([(job_id, name)], since)
                assert scheduler.health.responding
                other = unique("goes-on")
                other_id = await scheduler.submit(alice.batch_job(other, "exit 0"))
                await end_of(scheduler, other_id)
                assert scheduler.health.responding
            finally:
                await asyncio.to_thread(making.__exit__, None, None, None)
            await accounted(scheduler, other_id, other, since)

    asyncio.run(check())


async def accounted(scheduler: ChildScheduler, job_id: int, name: str, since: float) -> None:
    """Wait until accounting has the end of a job."""
    give_up = time.monotonic() + 90
    while True:
        try:
            rows = await scheduler.accounting([(job_id, name)], since)
        except Unavailable:
            rows = []
        if rows and rows[0].final:
            return
        assert time.monotonic() < give_up, rows
        await asyncio.sleep(0.2)


def test_without_a_findable_slurm_conf_the_reason_is_told(cluster: Cluster) -> None:
    async def check() -> None:
        container = str(cluster.host("login").container.id)
        argv = [
            *("docker", "exec", "-i", "-u", "alice", "-e", "SLURM_CONF=/no/slurm.conf", container),
            *(*PARENT, PYTHON, "-m", "slurmbus_agent.scheduler.child", "native"),
        ]
        scheduler = ChildScheduler(argv)
        with pytest.raises(Unavailable, match=r"slurm\.conf") as caught:
            await scheduler.ping()
        assert "/no/slurm.conf" in str(caught.value)
        await scheduler.aclose()

    asyncio.run(check())


def test_the_environment_of_an_allocation_does_not_reach_the_jobs(cluster: Cluster, alice: NativeSite) -> None:
    async def check() -> None:
        container = str(cluster.host("login").container.id)
        argv = [
            *("docker", "exec", "-i", "-u", "alice", "-e", "SLURM_FROM_OUTSIDE=1", "-e", "OTHER=1", container),
            *(*PARENT, PYTHON, "-m", "slurmbus_agent.scheduler.child", "native"),
        ]
        scheduler = ChildScheduler(argv)
        name = unique("clean")
        job_id = await scheduler.submit(alice.batch_job(name, 'echo "[$SLURM_FROM_OUTSIDE$OTHER]"'))
        await end_of(scheduler, job_id)
        await scheduler.aclose()
        assert alice.read(f"{alice.work_dir}/{name}.out") == "[]\n"

    asyncio.run(check())


def test_many_jobs_are_one_question(alice: NativeSite) -> None:
    """Also a check of the memory that is lent to libslurm's records: every one of them is read and freed."""

    async def check() -> None:
        async with opened(alice) as scheduler:
            name = unique("many")
            job = alice.batch_job(name, "exit 0")
            held: list[BatchJob] = [msgspec.structs.replace(job, name=f"{name}-{number}") for number in range(200)]
            ids = [await scheduler.submit(one) for one in held]
            for _ in range(20):
                seen = {found.job_id: found.name for found in await scheduler.jobs()}
                assert set(ids) <= set(seen)
                assert [seen[job_id] for job_id in ids] == [one.name for one in held]
            assert scheduler.health.calls["jobs"] == 20
            alice.run(["scancel", "--user", alice.user])
            give_up = time.monotonic() + 60
            while not all(has_ended(found) for found in await scheduler.jobs()):
                assert time.monotonic() < give_up
                await asyncio.sleep(0.5)
            assert scheduler.health.restarts == 0

    asyncio.run(check())
