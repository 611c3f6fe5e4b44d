"""What every scheduler does."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter

import msgspec
import pytest

from contract.native_site import NativeSite
from contract.sites import PATIENCE, Site, end_of, has_ended, observe, run_for
from integration.test_forgetful_slurm import drained
from slurmbus_agent.scheduler.array import ARRAY_TASK, split_name, task_name
from slurmbus_agent.scheduler.base import ANY_ID, BatchJob, Observation, Refused, Scheduler


def unique(what: str) -> str:
    """Give a job name that no other test uses: jobs of a cluster outlive a test."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


def test_ping_says_how_long_it_took(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            assert 0 < await scheduler.ping() < 3
            assert scheduler.health.responding
            assert scheduler.health.calls["ping"] >= 1
            assert scheduler.health.kind == scheduler.kind == site.kind

    asyncio.run(check())


def test_a_job_runs_to_its_end(site: Site) -> None:
    async def check() -> None:
        before = time.time()
        async with site.open() as scheduler:
            name = unique("plain")
            job_id = await scheduler.submit(site.batch_job(name, "echo to-stdout; echo to-stderr >&2; exec sleep 0.3"))
            running = await observe(scheduler, job_id, lambda job: job.state != "PENDING")
            assert (running.name, running.state) == (name, "RUNNING")
            assert running.start_time is not None
            assert running.exit_code is None
            assert running.signal is None
            assert running.node_list
            done = await end_of(scheduler, job_id)
            assert (done.state, done.exit_code, done.signal) == ("COMPLETED", 0, 0)
            assert done.job_id == job_id
            assert done.restarts == 0
            assert done.submit_time is not None
            assert done.start_time is not None
            assert done.end_time is not None
            assert before - 2 < done.submit_time <= done.start_time <= done.end_time <= time.time() + 2
            assert site.read(f"{site.work_dir}/{name}.out") == "to-stdout\nto-stderr\n"
            assert name in {job.name for job in await scheduler.jobs()}

    asyncio.run(check())


def test_the_job_gets_its_own_environment_and_no_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_AGENT", "leaked")

    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("env")
            body = 'echo "$GREETING|$OF_THE_AGENT|$PWD|$SLURM_JOB_ID|$SLURM_JOB_NAME|$SLURM_CPUS_PER_TASK"'
            environment = {"GREETING": "grüß 'dich' $HOME\nzweite Zeile = 2", "EMPTY": ""}
            job_id = await scheduler.submit(site.batch_job(name, body, environment=environment, cpus_per_task=2))
            await end_of(scheduler, job_id)
            output = site.read(f"{site.work_dir}/{name}.out")
            assert output == f"{environment['GREETING']}||{site.work_dir}|{job_id}|{name}|2\n"

    asyncio.run(check())


def test_output_is_appended(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("append")
            for _ in range(2):
                await end_of(scheduler, await scheduler.submit(site.batch_job(name, "echo once")))
            assert site.read(f"{site.work_dir}/{name}.out") == "once\nonce\n"

    asyncio.run(check())


def test_an_output_path_is_taken_literally(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("100%j-%%")
            await end_of(scheduler, await scheduler.submit(site.batch_job(name, "echo here")))
            assert site.read(f"{site.work_dir}/{name}.out") == "here\n"

    asyncio.run(check())


@pytest.mark.parametrize("code", [1, 3, 127, 255])
def test_exit_codes(site: Site, code: int) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("exit")
            job_id = await scheduler.submit(site.batch_job(name, f"exit {code}"))
            done = await end_of(scheduler, job_id)
            assert (done.state, done.exit_code, done.signal) == ("FAILED", code, 0)
            assert done.reason is not None
            assert "NonZeroExitCode" in done.reason

    asyncio.run(check())


@pytest.mark.parametrize("number", [9, 11])
def test_signals(site: Site, number: int) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            job_id = await scheduler.submit(site.batch_job(unique("signal"), f"ulimit -c 0; kill -{number} $$"))
            done = await end_of(scheduler, job_id)
            assert (done.state, done.exit_code, done.signal) == ("FAILED", 0, number)

    asyncio.run(check())


def test_an_interpreter_that_is_not_there(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            job = site.batch_job(unique("interpreter"), "")
            job_id = await scheduler.submit(_with(job, script="#!/no/such/interpreter\n"))
            done = await end_of(scheduler, job_id)
            assert done.state in {"FAILED", "NODE_FAIL"}
            assert (done.exit_code, done.signal) != (0, 0)

    asyncio.run(check())


def test_an_output_that_cannot_be_opened(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            job = site.batch_job(unique("output"), "echo lost")
            job_id = await scheduler.submit(_with(job, output=site.work_dir))
            done = await end_of(scheduler, job_id)
            assert done.state == "FAILED"
            assert (done.exit_code, done.signal) != (0, 0)

    asyncio.run(check())


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
def test_a_cancel_ends_the_whole_job(site: Site, trap: str) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("cancel")
            body = f"{trap} echo started; sleep 300 & sleep 300 & wait; wait"
            job_id = await scheduler.submit(site.batch_job(name, body))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            assert await scheduler.cancel(job_id, name)
            done = await end_of(scheduler, job_id)
            assert done.state == "CANCELLED"
            assert await scheduler.cancel(job_id, name) in {True, False}  # repeating it does no harm
            assert (await end_of(scheduler, job_id)).state == "CANCELLED"

    asyncio.run(check())


def test_a_cancel_right_after_the_submit(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("early")
            job_id = await scheduler.submit(site.batch_job(name, run_for(300)))
            assert await scheduler.cancel(job_id, name)
            assert (await end_of(scheduler, job_id)).state == "CANCELLED"

    asyncio.run(check())


def test_a_cancel_goes_by_the_name(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("mine")
            job_id = await scheduler.submit(site.batch_job(name, run_for(300)))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            assert not await scheduler.cancel(job_id, unique("of-somebody-else"))
            seen = await scheduler.job(job_id)
            assert seen is not None
            assert (seen.state, seen.flags) == ("RUNNING", ())
            assert await scheduler.cancel(job_id, name)
            await end_of(scheduler, job_id)

    asyncio.run(check())


def test_an_unknown_id(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            assert await scheduler.job(999_999) is None
            assert not await scheduler.cancel(999_999, "nobody")
            assert await scheduler.accounting([(999_999, "nobody")], time.time() - 3600) == []

    asyncio.run(check())


def test_a_script_without_an_interpreter_is_refused(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("refused")
            with pytest.raises(Refused, match="#!"):
                await scheduler.submit(_with(site.batch_job(name, ""), script="echo hello\n"))
            assert name not in {job.name for job in await scheduler.jobs()}

    asyncio.run(check())


async def ends_at_its_limit(site: Site) -> None:
    async with site.open() as scheduler:
        job_id = await scheduler.submit(site.batch_job(unique("slow"), "sleep 600; true", time_limit_minutes=1))
        done = await end_of(scheduler, job_id, within=60 + 3 * site.minute)
        assert done.state == "TIMEOUT"
        assert done.reason == "TimeLimit"


def test_the_time_limit(local_site: Site) -> None:
    asyncio.run(ends_at_its_limit(local_site))


def test_the_time_limit_of_every_slurm(slurm_sites: list[Site]) -> None:
    """All at once, because Slurm takes more than a minute for it."""

    async def check() -> None:
        await asyncio.gather(*(ends_at_its_limit(site) for site in slurm_sites))

    asyncio.run(check())


def test_accounting(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            since = time.time() - 60
            name = unique("burn")
            burn = "end=$((SECONDS+5)); while ((SECONDS < end)); do :; done"
            body = f"held=$(head -c 30000000 /dev/zero | tr '\\0' x); {burn}; exit 3"
            job_id = await scheduler.submit(site.batch_job(name, body, ntasks=1, cpus_per_task=1))
            await end_of(scheduler, job_id)
            row = await accounted(site, job_id, name, since)
            assert (row.job_id, row.name, row.final) == (job_id, name, True)
            figures = row.accounting
            assert (figures.state, figures.exit_code, figures.signal) == ("FAILED", 3, 0)
            assert 0.5 < figures.cpu_seconds < 10
            assert 1 <= figures.elapsed < 30
            assert figures.alloc_cpus >= 1
            assert figures.max_rss is not None
            assert 20_000_000 < figures.max_rss < 300_000_000
            assert row.submit_time is not None
            assert row.end_time is not None
            assert await scheduler.accounting([(job_id, "another-name")], since) == []
            assert await scheduler.accounting([(job_id, name)], row.submit_time + 3600) == []
            assert [found.job_id for found in await scheduler.accounting([(job_id, name), (999_999, "x")], since)] == [
                job_id
            ]

    async def accounted(site: Site, job_id: int, name: str, since: float):  # noqa: ANN202
        async with site.open() as scheduler:
            give_up = time.monotonic() + 60
            while True:
                rows = await scheduler.accounting([(job_id, name)], since)
                if rows and rows[0].final:
                    return rows[0]
                assert time.monotonic() < give_up, rows
                await asyncio.sleep(0.1)

    asyncio.run(check())


def test_accounting_of_an_unfinished_job_is_not_final(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("unfinished")
            since = time.time() - 60
            job_id = await scheduler.submit(site.batch_job(name, run_for(300)))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            assert not any(row.final for row in await scheduler.accounting([(job_id, name)], since))
            await scheduler.cancel(job_id, name)
            await end_of(scheduler, job_id)

    asyncio.run(check())


def test_only_a_running_job_of_that_name_goes_back_to_the_queue(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name = unique("requeue")
            job_id = await scheduler.submit(site.batch_job(name, run_for(300), requeue=True))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            if site.kind == "local":
                with pytest.raises(Refused, match="can't be requeued"):
                    await scheduler.requeue(job_id, name)
            else:
                assert not await scheduler.requeue(job_id, unique("foreign"))
                assert await scheduler.requeue(job_id, name)
                await observe(scheduler, job_id, lambda job: job.state == "PENDING" or job.restarts == 1)
            await scheduler.cancel(job_id, name)
            await end_of(scheduler, job_id)

    asyncio.run(check())


def test_slurms_no_to_a_requeue_is_told(slurm_sites: list[Site]) -> None:
    async def check(site: Site) -> None:
        async with site.open() as scheduler:
            name = unique("no-requeue")
            job_id = await scheduler.submit(site.batch_job(name, run_for(300)))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            with pytest.raises(Refused, match="disabled"):
                await scheduler.requeue(job_id, name)
            await scheduler.cancel(job_id, name)
            await end_of(scheduler, job_id)

    for site in slurm_sites:
        asyncio.run(check(site))


def test_many_jobs(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            names = [unique(f"many{number}") for number in range(24)]
            ids = await asyncio.gather(*(scheduler.submit(site.batch_job(name, "exit 0")) for name in names))
            assert len(set(ids)) == len(names)
            give_up = time.monotonic() + 120
            while True:
                seen = {job.job_id: job for job in await scheduler.jobs()}
                assert set(ids) <= set(seen)
                if all(has_ended(seen[job_id]) for job_id in ids):
                    break
                assert time.monotonic() < give_up
                await asyncio.sleep(0.3)
            assert {seen[job_id].state for job_id in ids} == {"COMPLETED"}
            assert [seen[job_id].name for job_id in ids] == names

    asyncio.run(check())


def test_jobs_go_on_without_the_scheduler(site: Site) -> None:
    async def check() -> None:
        name = unique("alone")
        async with site.open() as scheduler:
            job_id = await scheduler.submit(site.batch_job(name, "sleep 0.5; echo done"))
        async with site.open() as scheduler:
            assert (await end_of(scheduler, job_id)).state == "COMPLETED"
        assert site.read(f"{site.work_dir}/{name}.out") == "done\n"

    asyncio.run(check())


def test_partitions(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            partitions = await scheduler.partitions()
            assert sum(partition.default for partition in partitions) == 1
            assert all(partition.cpus >= 1 and partition.nodes >= 1 and partition.state for partition in partitions)

    asyncio.run(check())


def test_nodes_are_counted_by_their_states_in_the_words_of_sinfo(slurm_sites: list[NativeSite]) -> None:
    async def agrees(scheduler: Scheduler, site: NativeSite, drained: str) -> None:
        """Jobs of other tests may begin and end between the two questions."""
        deadline = time.monotonic() + PATIENCE
        while True:
            shown = site.run(["sinfo", "--noheader", "--Node", "--format=%R %N %T"])
            nodes = [line.rstrip("*").split() for line in shown.splitlines()]
            counted: dict[str, Counter[str]] = {}
            for partition, _, state in nodes:
                counted.setdefault(partition, Counter())[state] += 1
            found = {partition.name: partition.node_states for partition in await scheduler.partitions()}
            if found == counted and ["main", "c2", drained] in nodes:
                return
            assert time.monotonic() < deadline, (found, shown)
            await asyncio.sleep(0.2)

    async def check(site: NativeSite) -> None:
        async with site.open() as scheduler:
            name = unique("holds")
            job_id = await scheduler.submit(site.batch_job(name, "exec sleep 120", partition="main", nodelist="c2"))
            await observe(scheduler, job_id, lambda job: job.state == "RUNNING")
            with drained(site.cluster, "c2"):
                await agrees(scheduler, site, "draining")
                await scheduler.cancel(job_id, name)
                await agrees(scheduler, site, "drained")

    for site in slurm_sites:
        asyncio.run(check(site))


def _with(job, **changes: str):  # noqa: ANN001, ANN202
    import msgspec

    return msgspec.structs.replace(job, **changes)


# ---------------------------------------------------------------------- arrays


def array_job(site: Site, name: str, body: str, indexes: tuple[int, ...], throttle: int | None = None) -> BatchJob:
    """An array whose tasks write to ``<name>.<index>.out``."""
    return msgspec.structs.replace(
        site.batch_job(name, body),
        array=indexes,
        array_throttle=throttle,
        output=f"{site.work_dir}/{name}.{ARRAY_TASK}.out",
    )


async def cancelled(scheduler: Scheduler, job_id: int, name: str) -> None:
    """Wait until nothing of an array is left that could run; Slurm forgets tasks that were cancelled as they waited."""
    give_up = time.monotonic() + PATIENCE
    while any(not has_ended(job) for job in await scheduler.jobs() if split_name(job.name)[0] == name):
        assert time.monotonic() < give_up, job_id
        await asyncio.sleep(0.1)
    assert {job.state for job in await scheduler.jobs() if job.job_id == job_id} == {"CANCELLED"}


async def all_ended(scheduler: Scheduler, job_id: int, name: str, indexes: tuple[int, ...]) -> dict[int, Observation]:
    """Wait for the end of an array's tasks."""
    wanted = {task_name(name, index): index for index in indexes}
    give_up = time.monotonic() + PATIENCE
    while True:
        seen = {wanted[job.name]: job for job in await scheduler.jobs() if job.name in wanted and job.job_id == job_id}
        if len(seen) == len(wanted) and all(has_ended(job) for job in seen.values()):
            return seen
        assert time.monotonic() < give_up, seen
        await asyncio.sleep(0.1)


def test_the_tasks_of_an_array_are_jobs_of_their_own(site: Site) -> None:
    body = 'echo "$SLURM_ARRAY_JOB_ID $SLURM_ARRAY_TASK_ID $SLURM_JOB_ID"; exit $SLURM_ARRAY_TASK_ID'

    async def check() -> None:
        async with site.open() as scheduler:
            name, indexes = unique("array"), (0, 1, 3, 7)
            job_id = await scheduler.submit(array_job(site, name, body, indexes))
            ended = await all_ended(scheduler, job_id, name, indexes)
            assert {index: job.exit_code for index, job in ended.items()} == {index: index for index in indexes}
            assert {index: job.state == "COMPLETED" for index, job in ended.items()} == {
                index: index == 0 for index in indexes
            }
            own_ids = {index: job.task_job_id for index, job in ended.items()}
            assert len(set(own_ids.values())) == len(indexes)
            assert None not in own_ids.values()
            for index in indexes:
                output = site.read(f"{site.work_dir}/{name}.{index}.out")
                assert output == f"{job_id} {index} {own_ids[index]}\n"
                one = await scheduler.job(job_id, index)
                assert one is not None
                assert (one.job_id, one.name, one.exit_code) == (job_id, task_name(name, index), index)
            assert await scheduler.job(job_id, 2) is None

    asyncio.run(check())


def test_an_array_keeps_to_its_throttle_and_each_waiting_task_is_shown(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name, indexes = unique("throttled"), tuple(range(70))
            job_id = await scheduler.submit(array_job(site, name, run_for(60), indexes, throttle=2))
            wanted = {task_name(name, index) for index in indexes}
            give_up = time.monotonic() + PATIENCE
            while True:
                seen = [job for job in await scheduler.jobs() if job.job_id == job_id]
                assert {job.name for job in seen} == wanted
                running = [job for job in seen if job.state == "RUNNING"]
                assert len(running) <= 2
                if len(running) == 2:
                    break
                assert time.monotonic() < give_up
                await asyncio.sleep(0.1)
            assert sum(job.state == "PENDING" for job in seen) == len(indexes) - 2
            assert await scheduler.cancel(job_id, task_name(name, indexes))
            await cancelled(scheduler, job_id, name)

    asyncio.run(check())


def test_a_cancel_of_tasks_never_hits_their_siblings(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name, indexes = unique("picked"), (0, 1, 2, 3, 4, 5)
            job_id = await scheduler.submit(array_job(site, name, run_for(60), indexes, throttle=2))

            async def states() -> dict[int, str]:
                found = {index: await scheduler.job(job_id, index) for index in indexes}
                return {index: job.state if job else "CANCELLED" for index, job in found.items()}

            give_up = time.monotonic() + PATIENCE
            while sorted((await states()).values()) != ["PENDING"] * 4 + ["RUNNING"] * 2:
                assert time.monotonic() < give_up
                await asyncio.sleep(0.1)
            before = await states()
            picked = {min(i for i, s in before.items() if s == wanted) for wanted in ("RUNNING", "PENDING")}
            assert await scheduler.cancel(job_id, task_name(name, picked))
            assert not await scheduler.cancel(job_id, task_name("another-name", picked))
            after = await states()
            while {after[index] for index in picked} != {"CANCELLED"}:
                assert time.monotonic() < give_up
                await asyncio.sleep(0.1)
                after = await states()
            assert all(after[index] in {"PENDING", "RUNNING"} for index in indexes if index not in picked), after
            assert await scheduler.cancel(job_id, task_name(name, indexes))
            await cancelled(scheduler, job_id, name)

    asyncio.run(check())


def test_the_task_that_has_the_arrays_own_id_can_be_cancelled_alone(site: Site) -> None:
    """Slurm's cancel of that id alone would end all of them."""

    async def check() -> None:
        async with site.open() as scheduler:
            name, indexes = unique("own-id"), (0, 1)
            job_id = await scheduler.submit(array_job(site, name, run_for(60), indexes, throttle=2))
            give_up = time.monotonic() + PATIENCE
            while True:
                seen = {index: await scheduler.job(job_id, index) for index in indexes}
                running = {i: job for i, job in seen.items() if job is not None and job.state == "RUNNING"}
                if len(running) == len(indexes):
                    break
                assert time.monotonic() < give_up, seen
                await asyncio.sleep(0.1)
            victim = next((i for i, job in running.items() if job.task_job_id == job_id), 0)
            assert await scheduler.cancel(job_id, task_name(name, victim))
            while (ended := await scheduler.job(job_id, victim)) is None or not has_ended(ended):
                assert time.monotonic() < give_up
                await asyncio.sleep(0.1)
            sibling = await scheduler.job(job_id, 1 - victim)
            assert (ended.state, sibling and sibling.state) == ("CANCELLED", "RUNNING")
            assert await scheduler.cancel(job_id, task_name(name, indexes))
            await cancelled(scheduler, job_id, name)

    asyncio.run(check())


def test_accounting_knows_each_task(site: Site) -> None:
    async def check() -> None:
        async with site.open() as scheduler:
            name, indexes, begun = unique("accounted"), (0, 4, 5), time.time() - 60
            job_id = await scheduler.submit(array_job(site, name, "exit $SLURM_ARRAY_TASK_ID", indexes, throttle=1))
            give_up = time.monotonic() + PATIENCE
            while (first := await scheduler.job(job_id, 0)) is None or first.state == "PENDING":
                assert time.monotonic() < give_up
                await asyncio.sleep(0.05)
            await all_ended(scheduler, job_id, name, indexes)
            asked = [(job_id, task_name(name, index)) for index in indexes]
            by_name = [(ANY_ID, task_name(name, index)) for index in (0, 5)]
            for question, expected in ((asked, indexes), (by_name, (0, 5)), ([(job_id, task_name(name, 9))], ())):
                while True:
                    rows = await scheduler.accounting(question, begun)
                    if len(rows) == len(expected) and all(row.final for row in rows):
                        break
                    assert time.monotonic() < give_up, rows
                    await asyncio.sleep(0.2)
                assert {(row.job_id, row.name) for row in rows} == {(job_id, task_name(name, i)) for i in expected}
                assert {row.accounting.exit_code for row in rows} == set(expected)

    asyncio.run(check())
