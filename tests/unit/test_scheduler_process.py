"""A scheduler's child process that hangs, dies or talks nonsense, and what becomes of the calls."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from slurmbus_agent.scheduler.base import BatchJob, BudgetSpent, OutcomeUnknown, Refused, Unavailable
from slurmbus_agent.scheduler.limits import CallBudget, CallLimits, TokenBucket
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_protocol.messages import JobOptions

CHILD = Path(__file__).with_name("scripted_child.py")
QUICK = CallLimits(
    start=20, ping=0.4, read=0.6, control=1.0, hung_ping=1.5, fresh=60, idle=60, probe_first=0.1, probe_last=0.2
)
JOB = BatchJob(name="job", script="#!/bin/sh\n", work_dir="/", output="/o", environment={}, options=JobOptions())


class Child:
    """The scripted child: what it shall do, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def argv(self) -> list[str]:
        return [sys.executable, str(CHILD), str(self.folder)]

    def do(self, kind: str, what: str) -> None:
        if what:
            new = self.folder / "new"
            new.write_text(what)
            new.rename(self.folder / kind)
        else:
            (self.folder / kind).unlink()

    @property
    def log(self) -> list[str]:
        log = self.folder / "log"
        return [line for line in log.read_text().splitlines() if line != "start"] if log.exists() else []

    def pids(self) -> list[int]:
        command = f"{CHILD}\0{self.folder}\0".encode()
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    if (process / "cmdline").read_bytes().endswith(command):
                        found.append(int(process.name))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return found


@pytest.fixture
def child(tmp_path: Path) -> Child:
    return Child(tmp_path)


@asynccontextmanager
async def running(
    child: Child, limits: CallLimits = QUICK, budget: CallBudget | None = None
) -> AsyncIterator[ChildScheduler]:
    scheduler = ChildScheduler(child.argv, limits=limits, budget=budget or CallBudget(burst=1000))
    try:
        yield scheduler
    finally:
        await scheduler.aclose()
        assert child.pids() == []


async def until(condition: Callable[[], bool], within: float = 10) -> None:
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.005)


def test_every_call_and_its_types(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            health = scheduler.health
            assert (health.responding, health.asked, health.silent) == (False, False, False)
            assert child.pids() == []  # nothing is started before it is needed
            assert 0 < await scheduler.ping() < 0.4
            assert await scheduler.submit(JOB) == 42
            assert [job.flags for job in await scheduler.jobs()] == [("COMPLETING",)]
            assert (await scheduler.job(42)).reason == "Priority"  # type: ignore[union-attr]
            assert await scheduler.job(7) is None
            assert await scheduler.accounting([(42, "job")], 1.5) == []
            assert await scheduler.accounting_backlog() == 3
            assert await scheduler.cancel(42, "job") is True
            assert await scheduler.cancel(42, "other") is False
            assert await scheduler.requeue(42, "job") is True
            assert await scheduler.requeue(42, "other") is False
            assert (await scheduler.partitions())[0].name == "main"
            health = scheduler.health
            assert (health.responding, health.asked, health.silent) == (True, True, False)
            assert health.error is None
            assert health.latency is not None
            assert health.calls["cancel"] == 2
            assert health.restarts == 0

    asyncio.run(check())


def test_refused_carries_message_and_hint(child: Child) -> None:
    async def check() -> None:
        child.do("submit", "refuse")
        async with running(child) as scheduler:
            with pytest.raises(Refused, match="Invalid partition") as caught:
                await scheduler.submit(JOB)
            assert caught.value.hint == "known are: main"
            assert scheduler.health.responding

    asyncio.run(check())


def test_a_hanging_read_is_unavailable_and_costs_the_child_its_life(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            (first,) = child.pids()
            child.do("job", "hang")
            begun = time.monotonic()
            with pytest.raises(Unavailable, match=r"within 0\.6 s"):
                await scheduler.job(42)
            assert 0.5 < time.monotonic() - begun < 5
            child.do("job", "")
            assert (await scheduler.job(42)) is not None
            (second,) = child.pids()
            assert second != first
            assert scheduler.health.restarts == 1

    asyncio.run(check())


@pytest.mark.parametrize("kind", ["submit", "cancel", "requeue"])
@pytest.mark.parametrize("what", ["hang", "die", "garbage"])
def test_a_control_that_was_sent_has_an_unknown_outcome(child: Child, kind: str, what: str) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            child.do(kind, what)
            calls: dict[str, Callable[[], Coroutine[object, object, object]]] = {
                "submit": lambda: scheduler.submit(JOB),
                "cancel": lambda: scheduler.cancel(42, "job"),
                "requeue": lambda: scheduler.requeue(42, "job"),
            }
            with pytest.raises(OutcomeUnknown) as caught:
                await calls[kind]()
            if what == "die":
                assert "SIGABRT" in str(caught.value)
                assert "these are my last words" in str(caught.value)
            child.do(kind, "")
            assert await scheduler.submit(JOB) == 42

    asyncio.run(check())


@pytest.mark.parametrize("what", ["die", "garbage"])
def test_a_read_that_kills_the_child_is_unavailable(child: Child, what: str) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            child.do("jobs", what)
            with pytest.raises(Unavailable):
                await scheduler.jobs()
            child.do("jobs", "")
            assert len(await scheduler.jobs()) == 1

    asyncio.run(check())


def test_what_a_library_prints_does_not_damage_the_answers(child: Child) -> None:
    async def check() -> None:
        child.do("jobs", "noise")
        async with running(child) as scheduler:
            assert len(await scheduler.jobs()) == 1
            assert scheduler.health.restarts == 0

    asyncio.run(check())


def test_a_submit_behind_a_hung_read_is_sent_once_to_the_next_child(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            child.do("jobs", "hang")
            reading = asyncio.create_task(scheduler.jobs())
            await until(lambda: "jobs" in child.log)
            submitting = asyncio.create_task(scheduler.submit(JOB))
            with pytest.raises(Unavailable):
                await reading
            assert await submitting == 42
            assert child.log.count("submit job") == 1

    asyncio.run(check())


def test_a_call_that_does_not_get_its_turn_was_not_sent(child: Child) -> None:
    async def check() -> None:
        limits = replace(QUICK, read=1.0, control=0.3)
        async with running(child, limits) as scheduler:
            await scheduler.ping()
            child.do("jobs", "hang")
            reading = asyncio.create_task(scheduler.jobs())
            await until(lambda: "jobs" in child.log)
            with pytest.raises(Unavailable, match="turn"):
                await scheduler.submit(JOB)
            with pytest.raises(Unavailable):
                await reading
            assert await scheduler.job(7) is None
            assert "submit job" not in child.log

    asyncio.run(check())


def test_a_cancelled_caller_leaves_the_others_in_order(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            child.do("jobs", "hang")
            reading = asyncio.create_task(scheduler.jobs())
            await until(lambda: "jobs" in child.log)
            waiting = asyncio.create_task(scheduler.submit(JOB))
            await asyncio.sleep(0)
            reading.cancel()
            waiting.cancel()
            await asyncio.wait({reading, waiting})
            child.do("jobs", "")
            assert await scheduler.job(7) is None
            assert "submit job" not in child.log

    asyncio.run(check())


def test_a_controller_that_does_not_respond_is_probed_and_calls_fail_at_once(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            up_since = scheduler.health.since
            child.do("ping", "unavailable")
            child.do("jobs", "unavailable")
            with pytest.raises(Unavailable):
                await scheduler.jobs()
            await until(lambda: not scheduler.health.responding)
            assert scheduler.health.since > up_since
            assert "Unable to contact" in (scheduler.health.error or "")
            asked = len([line for line in child.log if line != "ping"])
            for _ in range(50):
                with pytest.raises(Unavailable, match="doesn't respond"):
                    await scheduler.submit(JOB)
            assert len([line for line in child.log if line != "ping"]) == asked
            pings = child.log.count("ping")
            await until(lambda: child.log.count("ping") > pings + 2)
            child.do("jobs", "")
            child.do("ping", "")
            await until(lambda: scheduler.health.responding)
            assert len(await scheduler.jobs()) == 1
            assert scheduler.health.restarts == 0

    asyncio.run(check())


def test_a_child_that_cannot_reach_the_controller_is_renewed(child: Child) -> None:
    """Its slurm.conf may name a controller that has moved."""

    async def check() -> None:
        async with running(child, replace(QUICK, renew=0.5)) as scheduler:
            await scheduler.ping()
            (first,) = child.pids()
            child.do("ping", "unavailable")
            with pytest.raises(Unavailable):
                await scheduler.ping()
            await until(lambda: child.pids() not in ([], [first]))
            child.do("ping", "")
            await until(lambda: scheduler.health.responding)

    asyncio.run(check())


def test_a_frozen_controller_is_noticed_again_by_the_answer_to_the_late_ping(child: Child) -> None:
    async def check() -> None:
        limits = replace(QUICK, hung_ping=30, fresh=0)
        async with running(child, limits) as scheduler:
            await scheduler.ping()
            (first,) = child.pids()
            child.do("ping", "hang")
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                await scheduler.submit(JOB)  # pinged first, so it isn't sent
            assert time.monotonic() - begun < 3
            assert not scheduler.health.responding
            child.do("ping", "")
            await until(lambda: scheduler.health.responding)
            assert child.pids() == [first]
            assert "submit job" not in child.log

    asyncio.run(check())


def test_a_child_that_hangs_in_a_ping_is_replaced_in_the_end(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            (first,) = child.pids()
            child.do("ping", "hang")
            with pytest.raises(Unavailable):
                await scheduler.ping()
            await until(lambda: first not in child.pids())
            child.do("ping", "")
            await until(lambda: scheduler.health.responding)
            assert scheduler.health.restarts >= 1

    asyncio.run(check())


def test_the_event_loop_is_never_held_up(child: Child) -> None:
    async def check() -> None:
        longest = 0.0
        done = False

        async def tick() -> None:
            nonlocal longest
            while not done:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)

        async with running(child) as scheduler:
            await scheduler.ping()
            ticking = asyncio.create_task(tick())
            child.do("jobs", "hang")
            with pytest.raises(Unavailable):
                await scheduler.jobs()
            done = True
            await ticking
        assert longest < 0.3

    asyncio.run(check())


def test_an_idle_child_is_stopped_and_started_again(child: Child) -> None:
    async def check() -> None:
        async with running(child, replace(QUICK, idle=0.2)) as scheduler:
            await scheduler.ping()
            assert len(child.pids()) == 1
            await until(lambda: not child.pids())
            assert scheduler.health.responding
            assert await scheduler.submit(JOB) == 42
            assert scheduler.health.restarts == 0

    asyncio.run(check())


def test_a_child_killed_from_outside_is_replaced(child: Child) -> None:
    async def check() -> None:
        async with running(child, replace(QUICK, fresh=0)) as scheduler:
            await scheduler.ping()
            os.kill(child.pids()[0], signal.SIGKILL)
            await until(lambda: not child.pids())
            await until(lambda: scheduler._channel is not None and scheduler._channel.is_gone)
            assert await scheduler.submit(JOB) == 42
            assert scheduler.health.restarts == 1

    asyncio.run(check())


def test_a_child_that_cannot_serve_says_why(child: Child) -> None:
    async def check() -> None:
        child.do("start", "unavailable")
        async with running(child) as scheduler:
            with pytest.raises(Unavailable, match="Unable to contact"):
                await scheduler.ping()
            child.do("start", "")
            await until(lambda: scheduler.health.responding)

    asyncio.run(check())


def test_a_child_that_ends_at_once_says_its_last_words() -> None:
    async def check() -> None:
        argv = [sys.executable, "-c", "import sys; sys.exit('fatal: no slurm.conf')"]
        scheduler = ChildScheduler(argv, limits=QUICK)
        with pytest.raises(Unavailable, match=r"exit code 1: fatal: no slurm\.conf"):
            await scheduler.ping()
        await scheduler.aclose()
        missing = ChildScheduler(["/no/such/program"], limits=QUICK)
        with pytest.raises(Unavailable, match="can't be started"):
            await missing.jobs()
        await missing.aclose()

    asyncio.run(check())


def test_a_call_after_the_lease_is_not_made(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            scheduler.lease_deadline = lambda: now + 3600
            assert await scheduler.submit(JOB) == 42
            scheduler.lease_deadline = lambda: now
            with pytest.raises(Unavailable, match="lease"):
                await scheduler.submit(JOB)
            with pytest.raises(Unavailable, match="lease"):
                await scheduler.cancel(42, "job")
            with pytest.raises(Unavailable, match="lease"):
                await scheduler.requeue(42, "job")
            assert len(await scheduler.jobs()) == 1  # who only asks needs no lease
            scheduler.lease_deadline = lambda: None
            with pytest.raises(Unavailable, match="no lease"):
                await scheduler.submit(JOB)
            assert child.log.count("submit job") == 1
            assert not any(line.startswith(("cancel", "requeue")) for line in child.log)

    asyncio.run(check())


def test_the_lease_is_looked_at_right_before_the_call(child: Child) -> None:
    """A submit waits in a frozen child until the lease is over: thawed, the child doesn't carry it out."""

    async def check() -> None:
        async with running(child, replace(QUICK, control=20)) as scheduler:
            await scheduler.ping()
            (pid,) = child.pids()
            os.kill(pid, signal.SIGSTOP)
            over = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.2
            scheduler.lease_deadline = lambda: over
            submitting = asyncio.create_task(scheduler.submit(JOB))
            await until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > over)
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(Unavailable, match="lease"):
                await submitting
            assert "submit job" not in child.log

    asyncio.run(check())


def test_the_budget_holds_back_reads_and_lets_controls_pass(child: Child) -> None:
    async def check() -> None:
        budget = CallBudget(burst=5, per_second=0.5, read_wait=0.1, control_wait=0.05)
        async with running(child, budget=budget) as scheduler:
            for _ in range(4):  # and one ping
                await scheduler.job(42)
            with pytest.raises(BudgetSpent, match="budget"):
                await scheduler.job(42)
            begun = time.monotonic()
            for _ in range(5):
                assert await scheduler.submit(JOB) == 42
                assert await scheduler.cancel(42, "job")
            assert time.monotonic() - begun < 5
            assert child.log.count("job 42") == 4

    asyncio.run(check())


def test_submits_dont_keep_a_question_for_all_from_being_asked(child: Child) -> None:
    async def test() -> None:
        budget = CallBudget(burst=3, per_second=0.01, read_wait=0.1, control_wait=0.01, turn_wait=0.2)
        async with running(child, budget=budget) as scheduler:
            for _ in range(8):
                await scheduler.submit(JOB)
            with pytest.raises(BudgetSpent, match="budget"):
                await scheduler.jobs()
            await scheduler.turn()
            await scheduler.jobs()
            with pytest.raises(BudgetSpent, match="budget"):
                await scheduler.jobs()

    asyncio.run(test())


def test_accounting_that_does_not_answer_leaves_the_controller_alone(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            child.do("accounting", "unavailable")
            with pytest.raises(Unavailable):
                await scheduler.accounting([(42, "job")], 0)
            assert scheduler.health.responding
            with pytest.raises(Unavailable, match="a moment ago"):
                await scheduler.accounting([(42, "job")], 0)
            assert await scheduler.submit(JOB) == 42
            child.do("accounting", "")

    asyncio.run(check())


def test_the_child_dies_with_its_parent(child: Child) -> None:
    program = f"""
import asyncio
from slurmbus_agent.scheduler.process import ChildScheduler

async def main():
    scheduler = ChildScheduler({child.argv!r})
    await scheduler.ping()
    print("up", flush=True)
    await scheduler.jobs()

asyncio.run(main())
"""
    child.do("jobs", "hang")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        asyncio.run(until(lambda: "jobs" in child.log))
        parent.kill()
    asyncio.run(until(lambda: not child.pids()))


def test_closing_fails_what_waits(child: Child) -> None:
    async def check() -> None:
        async with running(child) as scheduler:
            await scheduler.ping()
            child.do("jobs", "hang")
            reading = asyncio.create_task(scheduler.jobs())
            waiting = asyncio.create_task(scheduler.submit(JOB))
            await until(lambda: "jobs" in child.log)
            await scheduler.aclose()
            for task in (reading, waiting):
                with pytest.raises(Unavailable, match="closed"):
                    await task

    asyncio.run(check())


def test_token_bucket() -> None:
    bucket = TokenBucket(CallBudget(burst=2, per_second=0.5), now=100.0)
    assert bucket.wait(100.0) == 0
    bucket.take(100.0)
    bucket.take(100.0)
    assert bucket.wait(100.0) == 2.0
    assert bucket.wait(101.0) == 1.0
    for _ in range(10):
        bucket.take(101.0)
    assert bucket.wait(101.0) == 6.0  # the debt is at most one burst
    assert bucket.wait(1000.0) == 0
