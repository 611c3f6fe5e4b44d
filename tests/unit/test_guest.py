"""What an agent may use of its host, and what follows from what it uses."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.files import AuthorityFiles
from slurmbus_agent.authority.standing import Authority
from slurmbus_agent.config import load
from slurmbus_agent.guest import processes
from slurmbus_agent.guest.beats import Beats
from slurmbus_agent.guest.judging import Use, judge
from slurmbus_agent.guest.limits import HostLimits, Limits, in_force
from slurmbus_agent.guest.measuring import controller_calls
from slurmbus_agent.scheduler.limits import CallBudget, TokenBucket
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import SchedulerHealth

MIB = 1024 * 1024
LIMITS = Limits(cpu_seconds=1200.0, memory=100.0 * MIB, calls_per_second=0.2, calls_are_limited=True)


def use(
    *, cpu: float = 10.0, memory: float = 40.0 * MIB, calls: float = 0.0, looks: float = 0.0, age: float = 1e5
) -> Use:
    return Use(cpu_seconds=cpu, memory=memory, calls=calls, stat_calls=looks, window=300.0, age=age)


def test_the_strictest_limit_counts_whoever_set_it() -> None:
    mine = HostLimits(cpu_minutes=30, memory_mib=200)
    site = HostLimits(cpu_minutes=20, memory_mib=400, calls_per_second=0.2)
    limits = in_force(mine, site, kernel_cpu_seconds=600.0)
    assert limits == Limits(cpu_seconds=600.0, memory=200.0 * MIB, calls_per_second=0.2, calls_are_limited=True)
    assert in_force(mine, site).cpu_seconds == 1200.0


def test_where_nobody_sets_a_limit_the_agent_has_its_own() -> None:
    limits = in_force(HostLimits())
    assert limits.cpu_seconds == budgets.CPU_MINUTES * 60
    assert limits.calls_per_second == budgets.READS_PER_SECOND
    assert not limits.calls_are_limited


def test_nobody_can_allow_more_calls_than_the_agent_would_make() -> None:
    assert in_force(HostLimits(calls_per_second=50)).calls_per_second == budgets.READS_PER_SECOND


def test_far_from_all_limits_nothing_follows() -> None:
    judgement = judge(use(), LIMITS)
    assert (judgement.stretch, judgement.slowed, judgement.hand_over) == (1.0, "", "")
    assert {budget.name: (budget.used, budget.limit) for budget in judgement.budgets} == {
        "cpu-time": (10.0, 1200.0),
        "memory": (40.0 * MIB, 100.0 * MIB),
        "calls": (0.0, 60.0),
        "stat-calls": (0.0, 6000.0),
    }


def test_near_the_limit_of_cpu_time_a_fresh_process_is_wanted() -> None:
    assert not judge(use(cpu=0.79 * 1200), LIMITS).hand_over
    judgement = judge(use(cpu=0.81 * 1200), LIMITS)
    assert judgement.hand_over == "cpu-time: 16.2 min of 20.0 min"
    assert not judgement.slowed, "a fresh process begins at nothing"


def test_without_a_fresh_process_the_agent_slows_down_and_says_so() -> None:
    judgement = judge(use(cpu=1150.0), LIMITS)
    assert 1 < judgement.stretch < budgets.STRETCH_MOST
    assert judgement.slowed.startswith("cpu-time: 19.2 min of 20.0 min: everything that can wait takes")
    assert judge(use(cpu=2000.0), LIMITS).stretch == budgets.STRETCH_MOST


def test_near_the_limit_of_calls_the_agent_asks_less_often() -> None:
    assert judge(use(calls=47), LIMITS).stretch == 1.0
    judgement = judge(use(calls=55), LIMITS)
    assert judge(use(calls=55), msgspec.structs.replace(LIMITS, calls_are_limited=False)).stretch == 1.0
    assert judgement.stretch > 1
    assert judgement.slowed.startswith("calls: 55 of 60 in 300 s")


def test_memory_wants_a_fresh_process_but_not_one_after_the_other() -> None:
    assert judge(use(memory=95 * MIB), LIMITS).hand_over == "memory: 95 MiB of 100 MiB"
    assert not judge(use(memory=95 * MIB, age=60.0), LIMITS).hand_over


def test_a_process_serves_for_a_while_whatever_the_limit() -> None:
    assert not judge(use(cpu=5000.0, age=1.0), LIMITS).hand_over


@pytest.mark.parametrize("line", ["cpu_minutes = 0", "memory_mib = -1", "calls_per_second = 'few'", "cpu = 3"])
def test_a_limit_that_means_nothing_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(f'site = "a"\nservers = ["tls://h"]\ntrusted_keys = []\n[limits]\n{line}\n')
    path.chmod(0o600)
    with pytest.raises(InvalidSetting, match=r"limits"):
        load("a", path)


def test_where_a_site_limits_calls_submits_wait_for_their_turn() -> None:
    budget = CallBudget(burst=5, per_second=0.5, control_wait=budgets.CONTROL_WAIT_LIMITED)
    bucket = TokenBucket(budget, 0.0)
    waits = []
    for _ in range(25):
        waits.append(bucket.wait(0.0))
        bucket.take(0.0)
    assert waits[:5] == [0.0] * 5
    assert waits[5:] == [pytest.approx(2.0 * number) for number in range(1, 21)]


def test_the_kernel_tells_what_a_process_uses() -> None:
    busy = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes.cpu_seconds(process.pid) >= 0.15
        assert processes.resident(process.pid) > 1_000_000
        process.communicate(b"\n")
    assert processes.cpu_seconds(process.pid) == 0.0
    assert processes.resident(process.pid) == 0
    assert processes.open_files() >= len({0, 1, 2})
    assert processes.resident() == pytest.approx(processes.resident(os.getpid()), rel=0.1)


def test_a_policy_limits_the_agent_below_what_its_user_allows(tmp_path: Path) -> None:
    bundle = tmp_path / "a.toml"
    bundle.write_text('site = "a"\nservers = ["tls://h"]\ntrusted_keys = []\n[limits]\ncpu_minutes = 15\n')
    bundle.chmod(0o600)
    site = tmp_path / "etc"
    site.mkdir()
    (site / "policy.toml").write_text("[limits]\ncpu_minutes = 10\nmemory_mib = 100\n")
    (site / "policy.toml").chmod(0o644)
    spool = tmp_path / "spool"
    spool.mkdir()
    files = AuthorityFiles("a", bundle, spool, site_folder=site, site_owner=os.getuid())
    authority = Authority(load("a", bundle), files, Audit(spool / "audit.log"))
    authority.load()
    limits = in_force(load("a", bundle).limits, *authority.limits)
    assert (limits.cpu_seconds, limits.memory) == (600.0, 100.0 * MIB)
    assert not authority.limits_changed
    (site / "policy.toml").write_text("[limits]\ncpu_minutes = 5\n")
    authority.load()
    assert authority.limits_changed, "a fresh process begins with the new ones"


def test_work_that_can_wait_comes_with_a_heartbeat_or_at_the_latest() -> None:
    async def test() -> list[str]:
        beats = Beats()
        order: list[str] = []

        async def work(name: str, least: float, most: float) -> None:
            await beats.after(least, most)
            order.append(name)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(work("with the first heartbeat", 0.0, 15.0))
            group.create_task(work("without one", 10.0, 0.05))
            late = group.create_task(work("with a later one", 0.1, 15.0))
            await asyncio.sleep(0)
            beats.happened()
            while not late.done():
                await asyncio.sleep(0.02)
                beats.happened()
        return order

    order = asyncio.run(test())
    assert order[0] == "with the first heartbeat"
    assert set(order[1:]) == {"without one", "with a later one"}


def test_submits_count_only_where_somebody_has_set_a_limit() -> None:
    health = SchedulerHealth(
        kind="native", responding=True, since=0.0, calls={"submit": 1000, "jobs": 6, "ping": 5, "accounting": 40}
    )
    assert controller_calls(health, in_force(HostLimits())) == 11
    assert controller_calls(health, in_force(HostLimits(calls_per_second=0.5))) == 1011
