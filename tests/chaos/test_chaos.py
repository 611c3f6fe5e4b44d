"""Short runs with fixed seeds; `make chaos` is the long form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import report
from chaos.checker import Promise, Verdict, check
from chaos.harness import plan
from chaos.history import RunHistory
from chaos.pointed_run import PointRun, plan_cases
from chaos.rig import Rig
from slurmbus.home import SchedulerKind

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.usefixtures("engine")]

SEED = 20
SECONDS = 15.0
FIVE = plan_cases(SEED, 5)
CASES = {"native": FIVE[:3], "commands": FIVE[3:]}
"""Half a minute and five points of both schedulers together; each has one system for both kinds of runs."""


def judged(history: RunHistory, folder: Path) -> Verdict:
    """Check a run; what was broken stands in the failure, and the evidence in the folder.

    How long it took stands in the report of `make chaos` and isn't judged here: the machine may be busy with others.
    """
    verdict = check(history)
    path = report.write(history, verdict, folder)
    broken = [breach for breach in verdict.breaches if breach.promise is not Promise.SLOW]
    assert not broken, f"{report.table(history, verdict)}\nevidence: {path.parent}"
    return verdict


@pytest.mark.parametrize("scheduler", ["native", "commands"])
def test_faults_at_random_moments_and_at_labelled_points(
    tmp_path: Path, progress: Callable[[str], None], scheduler: SchedulerKind
) -> None:
    schedule = plan(SEED, SECONDS, steps=1)
    cases = CASES[scheduler]
    with Rig(tmp_path, progress, pointed=True, scheduler=scheduler) as rig:
        run = PointRun(rig, SEED, cases, progress, before=schedule)
        history = asyncio.run(run.run())
    counts = judged(history, tmp_path).counts
    assert counts.accepted >= len(schedule.jobs) + len(cases)
    assert sum(counts.faults.values()) == len(schedule.faults) + len(cases)
