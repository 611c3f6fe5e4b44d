"""What every scheduler does."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from contract.sites import Site, end_of, has_ended, observe, run_for
from slurmbus_agent.scheduler.base import Refused


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


def _with(job, **changes: str):  # noqa: ANN001, ANN202
    import msgspec

    return msgspec.structs.replace(job, **changes)
