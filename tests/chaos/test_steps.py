"""What Dagster was told about a step is judged: whole, in order, once for each job."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.history import Execution, StepHistory
from chaos.payload import pattern
from chaos.steps import judge, judge_jobs, one_after_the_other
from slurmbus_protocol.states import JobState

PLAN: dict[str, Any] = {"id": "s000", "pieces": 3, "stdout": 5}
SAID = ["s000 says 0", "s000 says 1", "s000 says 2"]


def step(**fields: Any) -> StepHistory:
    values: dict[str, Any] = {
        "id": "s000",
        "kills": 0,
        "succeeded": True,
        "stdout": pattern("s000", "stdout", 0, 5),
        "messages": SAID,
        "materializations": [{"said_by": "s000"}],
        "keys": ["A"],
    }
    return StepHistory(**{**values, **fields})


def test_a_step_that_went_well() -> None:
    assert judge(step(), PLAN) == ""
    assert judge_jobs(step(), {"A": JobState.COMPLETED}, [Execution(1, "c1", 1, 0.0, 1.0, 1.0, 0)]) == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"materializations": []},
        {"materializations": [{"said_by": "s000"}] * 2},
        {"materializations": [{"said_by": "s001"}]},
        {"messages": SAID[:2]},
        {"messages": [SAID[0], *SAID]},
        {"messages": [SAID[1], SAID[0], SAID[2]]},
        {"stdout": pattern("s000", "stdout", 0, 4)},
        {"stdout": pattern("s000", "stdout", 0, 5) * 2},
        {"stdout": b""},
    ],
)
def test_what_is_told_wrongly_is_found(fields: dict[str, Any]) -> None:
    assert judge(step(**fields), PLAN)


def test_a_step_fails_when_its_job_did_and_only_then() -> None:
    runs = [Execution(1, "c1", 1, 0.0, 1.0, 1.0, 0)]
    failed = step(succeeded=False, materializations=[])
    assert judge(failed, PLAN) == ""
    assert judge_jobs(failed, {"A": JobState.LOST}, runs) == ""
    assert judge_jobs(failed, {"A": JobState.COMPLETED}, runs)
    assert judge_jobs(failed, {"A": JobState.RUNNING}, runs)
    assert judge_jobs(step(), {"A": JobState.FAILED}, runs)


def test_a_second_job_after_a_failed_one_says_it_all_again() -> None:
    again = step(keys=["A", "B"], messages=[SAID[0], *SAID], stdout=pattern("s000", "stdout", 0, 2) + step().stdout)
    assert judge(again, PLAN) == ""
    runs = [Execution(number, "c1", 1, 0.0, 1.0, 1.0, 0) for number in range(2)]
    assert judge_jobs(again, {"A": JobState.NODE_FAIL, "B": JobState.COMPLETED}, runs) == ""
    assert judge_jobs(again, {"A": JobState.COMPLETED, "B": JobState.COMPLETED}, runs)
    assert judge_jobs(again, {"A": JobState.RUNNING, "B": JobState.COMPLETED}, runs)
    assert judge_jobs(step(), {"A": JobState.COMPLETED}, runs), "twice in one job"


def test_nothing_is_whole_when_there_is_nothing_to_say() -> None:
    assert one_after_the_other([], [], 1)
    assert not one_after_the_other([], ["a"], 1)
