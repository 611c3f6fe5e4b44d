"""A good guest, counted: what the agent asks of the controller, of the spool and of this machine. No times."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import aclosing
from pathlib import Path

from contract.agent_site import agent_site, shell
from contract.bus_site import BusSite, wait_until
from slurmbus_agent import budgets
from slurmbus_agent.events import Event, Observed
from slurmbus_agent.scheduler.limits import CallBudget, CallLimits
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_agent.watcher import Watcher
from slurmbus_protocol.messages import Vitals

CHILD = Path(__file__).parents[1] / "unit" / "scripted_child.py"
JOBS = 1000
ROUNDS = 5
CALLS_PER_SECOND = 0.2
"""What a thousand running jobs may cost the controller."""


async def until(condition: object, what: str) -> None:
    assert callable(condition)
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_thousand_running_jobs_share_one_question(tmp_path: Path) -> None:
    """The interval is the only thing that is shorter here than in an agent; so calls are counted per interval."""

    async def watch() -> tuple[dict[str, int], dict[str, int], Counter[str]]:
        seen: Counter[str] = Counter()
        scheduler = ChildScheduler([sys.executable, str(CHILD), str(tmp_path)], budget=CallBudget(burst=1000))
        watcher = Watcher(scheduler, interval=0.5)

        def post_for(name: str) -> object:
            def post(event: Event) -> None:
                assert isinstance(event, Observed)
                seen[name] += 1

            return post

        for number in range(1, JOBS + 1):
            watcher.watch(f"job{number}", number, post_for(f"job{number}"), urgent=False)  # type: ignore[arg-type]
        watching = asyncio.create_task(watcher.run())
        try:
            await until(lambda: scheduler.health.calls.get("jobs", 0) > ROUNDS, "questions")
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            calls, records = scheduler.health.calls, scheduler.footprint.records
            await scheduler.aclose()
        return calls, records, seen

    (tmp_path / "number").write_text(str(JOBS))
    calls, records, seen = asyncio.run(watch())
    assert set(calls) <= {"jobs", "ping"}, "no job is asked for alone"
    assert calls["ping"] <= calls["jobs"]
    assert ROUNDS * JOBS <= records["jobs"] <= calls["jobs"] * JOBS
    assert len(seen) == JOBS
    assert min(seen.values()) >= ROUNDS
    # One question and a ping before it in each interval.
    assert 2 / budgets.WATCH_INTERVAL <= CALLS_PER_SECOND / 2


def test_the_scheduler_s_process_goes_when_it_is_idle_and_when_it_has_used_its_cpu_time(tmp_path: Path) -> None:
    async def test() -> None:
        limits = CallLimits(idle=0.5)
        scheduler = ChildScheduler([sys.executable, str(CHILD), str(tmp_path)], limits=limits, cpu_limit=0.01)
        async with aclosing(scheduler):
            assert scheduler.footprint.pid == 0
            await scheduler.jobs()
            first = scheduler.footprint
            assert first.pid
            assert first.rss > 1_000_000
            assert first.cpu_seconds > 0
            await scheduler.jobs()
            assert scheduler.footprint.pid != first.pid, "it had used more than it may"
            await until(lambda: scheduler.footprint.pid == 0, "the end of an idle child")
            assert scheduler.footprint.rss == 0
            assert scheduler.health.restarts == 0, "nothing went wrong"

    asyncio.run(test())


def vitals(site: BusSite) -> Vitals:
    return next(status.heartbeat.vitals for status in site.client.heartbeats() if status.heartbeat.leader)


def test_while_the_link_lives_the_agent_leaves_the_spool_alone(tmp_path: Path) -> None:
    with agent_site(tmp_path) as (site, _):
        release, stop = tmp_path / "release", tmp_path / "stop"
        key = site.client.submit(
            shell(
                f"until [ -e {release} ]; do sleep 0.05; done; for n in $(seq 100); do echo $n; sleep 0.02; done; "
                f"until [ -e {stop} ]; do sleep 0.05; done"
            )
        )
        wait_until(lambda: vitals(site).link_connections == 1, "the runner")
        before = vitals(site)
        release.touch()
        wait_until(lambda: vitals(site).link_bytes_in > before.link_bytes_in + 292, "all lines", 60.0)
        after = vitals(site)
        # Once a minute it looks for jobs that nobody follows.
        assert after.stat_calls - before.stat_calls <= 2, "neither lines nor heartbeats touch a file"
        assert after.bus_bytes_out > before.bus_bytes_out > 0
        assert after.bus_bytes_in > 0
        assert {budget.name for budget in after.budgets} == {"cpu-time", "memory", "calls", "stat-calls"}
        assert all(0 <= budget.used < budget.limit for budget in after.budgets)
        assert not after.slowed
        assert after.scheduler_pid == 0, "local jobs need none"
        stop.touch()
        with site.client.follow(key) as events:
            assert list(events)
