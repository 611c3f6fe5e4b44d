"""Short runs with fixed seeds; `make chaos` is the long form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import report
from chaos.checker import Promise, Verdict, check
from chaos.harness import Run, plan
from chaos.history import RunHistory
from chaos.pointed_run import PointRun, plan_cases
from chaos.rig import Rig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.usefixtures("engine")]

SEED = 20
SECONDS = 30.0
CASES = 5


def judged(history: RunHistory, folder: Path) -> Verdict:
    """Check a run; what was broken stands in the failure, and the evidence in the folder.

    How long it took stands in the report of `make chaos` and isn't judged here: the machine may be busy with others.
    """
    verdict = check(history)
    path = report.write(history, verdict, folder)
    broken = [breach for breach in verdict.breaches if breach.promise is not Promise.SLOW]
    assert not broken, f"{report.table(history, verdict)}\nevidence: {path.parent}"
    return verdict


def test_faults_at_random_moments(tmp_path: Path, progress: Callable[[str], None]) -> None:
    schedule = plan(SEED, SECONDS, steps=2)
    with Rig(tmp_path, progress) as rig:
        history = asyncio.run(Run(rig, schedule, progress).run())
    counts = judged(history, tmp_path).counts
    assert counts.accepted == len(schedule.jobs)
    assert sum(counts.faults.values()) == len(schedule.faults)


def test_faults_at_labelled_points(tmp_path: Path, progress: Callable[[str], None]) -> None:
    with Rig(tmp_path, progress, pointed=True) as rig:
        history = asyncio.run(PointRun(rig, SEED, plan_cases(SEED, CASES), progress).run())
    counts = judged(history, tmp_path).counts
    assert sum(counts.faults.values()) == CASES
