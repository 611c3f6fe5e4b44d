"""What becomes of each task that an earlier attempt submitted; and what tasks users may name."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from dagster_slurmbus import ArrayTask
from dagster_slurmbus._compat import FoundLaunch
from dagster_slurmbus.array_launches import FoundArray, Place, extras, plan
from dagster_slurmbus.array_tasks import numbered
from dagster_slurmbus.reattach import OnChangedRequest
from slurmbus_protocol.messages import CancelAsked, JobOptions, Record
from slurmbus_protocol.states import JobState

KEY = "01JD0000000000000000000000"
OLD = "01JC0000000000000000000000"
WANTED = {"a": "1", "b": "2", "c": "3"}


def record(task: int, state: JobState = JobState.COMPLETED, **fields: Any) -> Record:
    base: dict[str, Any] = {"key": KEY, "site": "s", "epoch": 1, "name": "n", "submitter": "me", "tasks": 3}
    return Record(**{**base, "created_at": 1.0, "updated_at": 1.0, "task": task, "state": state, **fields})


def found(**places: Place) -> FoundArray:
    tasks = places or {name: Place(KEY, index, digest) for index, (name, digest) in enumerate(WANTED.items())}
    return FoundArray(launch=FoundLaunch("r", None), site="s", parts={}, tasks=tasks)  # type: ignore[arg-type]


def decide(known: dict[str, dict[int, Record]], array: FoundArray | None = None, **how: Any) -> Any:
    options: dict[str, Any] = {"same": True, "on_changed": OnChangedRequest.RESUBMIT, **how}
    wanted = options.pop("wanted", WANTED)
    numbers = {name: index for index, name in enumerate(wanted)}
    return plan(wanted, array or found(), known, numbers=numbers, **options)


def test_completed_and_running_tasks_are_kept_and_failed_ones_run_again() -> None:
    known = {KEY: {0: record(0), 1: record(1, JobState.FAILED), 2: record(2, JobState.RUNNING)}}
    decided = decide(known)
    assert (list(decided.follow), decided.submit, decided.end) == (["a", "c"], ["b"], {})
    assert decided.repeat is None


def test_nothing_was_launched() -> None:
    decided = plan(WANTED, None, {}, numbers={}, same=False, on_changed=OnChangedRequest.FAIL)
    assert (decided.follow, decided.submit) == ({}, ["a", "b", "c"])


def test_a_task_of_the_attempt_before_the_last_is_found_under_its_own_key() -> None:
    array = found(a=Place(OLD, 0, "1"), b=Place(KEY, 1, "2"), c=Place(OLD, 2, "3"))
    known = {OLD: {0: record(0), 2: record(2)}, KEY: {1: record(1, JobState.FAILED)}}
    decided = decide(known, array)
    assert {name: place.key for name, place in decided.follow.items()} == {"a": OLD, "c": OLD}
    assert decided.submit == ["b"]


def test_a_changed_task_is_ended_and_submitted_or_left_as_it_is() -> None:
    known = {KEY: {0: record(0, JobState.RUNNING), 1: record(1), 2: record(2)}}
    decided = decide(known, wanted={**WANTED, "a": "other"})
    assert (decided.submit, list(decided.end), decided.changed) == (["a"], ["a"], ["a"])
    decided = decide(known, wanted={**WANTED, "a": "other"}, on_changed=OnChangedRequest.REATTACH)
    assert (list(decided.follow), decided.submit) == (["a", "b", "c"], [])
    with pytest.raises(dg.Failure, match="on_changed_request"):
        decide(known, wanted={**WANTED, "a": "other"}, on_changed=OnChangedRequest.FAIL)
    decided = decide(known, same=False)
    assert decided.submit == ["a", "b", "c"]
    assert list(decided.end) == ["a"]


def test_a_task_that_is_being_cancelled_is_waited_for() -> None:
    asked = CancelAsked(id=KEY, at=1.0, submitter="me")
    known = {KEY: {0: record(0, JobState.RUNNING, cancel=asked), 1: record(1), 2: record(2)}}
    decided = decide(known)
    assert (decided.submit, list(decided.end)) == (["a"], ["a"])


def test_a_launch_that_the_site_doesnt_know_is_published_again_as_it_was() -> None:
    decided = decide({KEY: {}})
    assert (list(decided.follow), decided.submit, decided.repeat) == (["a", "b", "c"], [], KEY)
    # With another request its key must never come to life: it is cancelled first.
    decided = decide({KEY: {}}, wanted={**WANTED, "a": "other"})
    assert (decided.submit, sorted(decided.end), decided.repeat) == (["a", "b", "c"], ["a", "b", "c"], None)


def test_tasks_whose_numbers_have_changed_are_kept_but_not_published_again_under_their_old_ones() -> None:
    wanted = {"new": "0", **WANTED}
    decided = decide({KEY: {0: record(0), 1: record(1, JobState.RUNNING), 2: record(2)}}, wanted=wanted)
    assert (decided.submit, {name: place.index for name, place in decided.follow.items()}) == (
        ["new"],
        {"a": 0, "b": 1, "c": 2},
    )
    decided = decide({KEY: {}}, wanted=wanted)
    assert (decided.submit, sorted(decided.end), decided.repeat) == (list(wanted), ["a", "b", "c"], None)


def test_a_record_that_isnt_there_yet_while_its_siblings_are() -> None:
    decided = decide({KEY: {0: record(0, JobState.ACCEPTED)}})
    assert (list(decided.follow), decided.submit) == (["a", "b", "c"], [])


@pytest.mark.parametrize("state", [JobState.REJECTED, JobState.CANCELLED])
def test_an_array_that_ended_before_it_had_tasks_is_run_again_whole(state: JobState) -> None:
    decided = decide({KEY: {0: record(0, state, tasks=0)}})
    assert (decided.follow, decided.submit, decided.end) == ({}, ["a", "b", "c"], {})
    decided = decide({KEY: {0: record(0, state, tasks=0)}}, stays=lambda _place, _record: True)
    assert (list(decided.follow), decided.failed) == (["a", "b", "c"], ["a", "b", "c"])


def test_a_handle_knows_where_every_task_is() -> None:
    places = {"a": Place(OLD, 0, "1"), "b": Place(KEY, 1, "2")}
    kept = extras("s", {"command": "x"}, places)
    assert kept == {
        "site": "s",
        "parts": {"command": "x"},
        "keys": [OLD, KEY],
        "tasks": {"a": [0, 0, "1"], "b": [1, 1, "2"]},
    }


def test_a_handle_knows_what_further_attempts_ask_for() -> None:
    places = {"a": Place(OLD, 0, "1"), "b": Place(KEY, 1, "2", ("OUT_OF_MEMORY",))}
    kept = extras("s", {}, places, {KEY: JobOptions(mem_per_node_mib=2048), "gone": JobOptions()})
    assert kept["tasks"] == {"a": [0, 0, "1"], "b": [1, 1, "2", ["OUT_OF_MEMORY"]]}
    assert kept["options"] == {KEY: {"mem_per_node_mib": 2048}}


def test_a_failed_task_that_stays_so_is_kept_unless_it_asks_for_something_else() -> None:
    known = {KEY: {0: record(0), 1: record(1, JobState.FAILED), 2: record(2, JobState.OUT_OF_MEMORY)}}
    how: dict[str, Any] = {"stays": lambda _place, record: record.state is JobState.OUT_OF_MEMORY}
    decided = decide(known, **how)
    assert (list(decided.follow), decided.submit, decided.failed) == (["a", "c"], ["b"], ["c"])
    decided = decide(known, wanted={**WANTED, "c": "other"}, **how)
    assert (list(decided.follow), decided.submit, decided.failed) == (["a"], ["b", "c"], [])


def test_tasks_have_names_and_keep_their_numbers() -> None:
    tasks = numbered(["a", ArrayTask(args=("x", "y")), {"partition_key": "2026-01-01"}, ArrayTask()])
    assert [task.name for task in tasks] == ["a", "x y", "2026-01-01", "3"]
    assert [(task.index, task.name) for task in numbered(["a", "b", "c"], only=["c", 0])] == [(0, "a"), (2, "c")]
    assert tasks[0].given.args == ("a",)
    long = numbered([ArrayTask(name="x" * 500)])[0].name
    assert len(long) <= 256
