"""Every labelled point names a function that exists, so that no refactoring disarms it silently."""

from __future__ import annotations

import importlib
import inspect
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import COMMON, EMPTY_BUS, KINDS, confuses_controller, plan_faults
from chaos.harness import plan
from chaos.pointed_run import ACTIONS, plan_cases
from chaos.points import BACKENDS, POINTS, Point, of_child
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState


def source(module: str) -> str:
    """Read a module that can't be imported here: the one that needs pyslurm."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_text()


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.label)
def test_the_function_exists(point: Point) -> None:
    if point.child:
        for kind in BACKENDS:
            [there] = [found for found in of_child(kind) if found.label == point.label]
            class_name, _, name = there.name.partition(".")
            body = source(there.module).partition(f"class {class_name}:")[2]
            assert f"    def {name}(self" in body
        return
    owner: Any = importlib.import_module(point.module)
    for part in point.name.split("."):
        owner = inspect.getattr_static(owner, part)
    assert inspect.isfunction(owner), "only plain functions and coroutines are wrapped"


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.label)
def test_no_table_keeps_the_function_from_being_wrapped(point: Point) -> None:
    """A function that a class keeps in a table at its definition would be called from there, unwrapped."""
    class_name, _, name = point.name.partition(".")
    kept = [line for line in source(point.module).splitlines() if line.strip().endswith(f": {name},")]
    assert not kept, f"{class_name} calls {name} out of a table: {kept}"


def test_labels_are_told_apart() -> None:
    assert [label for label, count in Counter(point.label for point in POINTS).items() if count > 1] == []


def test_a_few_cases_have_as_many_points_as_possible() -> None:
    cases = plan_cases(1, len(POINTS))
    assert {case.point for case in cases} == set(POINTS)
    assert plan_cases(1) == plan_cases(1)
    assert len(plan_cases(1)) >= len(POINTS) * len(ACTIONS)


def test_conditions_look_at_the_records_that_they_are_about() -> None:
    written = Record(
        key="01JD0000000000000000000000",
        site="chaos",
        epoch=1,
        state=JobState.SUBMITTING,
        name="job",
        submitter="somebody",
        created_at=0.0,
        updated_at=0.0,
    )
    fitting = {point.label for point in POINTS if "Record" in point.name and point.fits((None, written))}
    assert "SUBMITTING written" in fitting
    assert not fitting & {"before the final record", "id written", "end written", "verdict written"}


def test_a_seed_stands_for_one_schedule() -> None:
    assert plan(5, 60.0) == plan(5, 60.0)
    assert plan(5, 60.0) != plan(6, 60.0)


def test_a_long_run_has_every_kind_of_fault_but_the_one_with_a_mode_of_its_own() -> None:
    faults = plan_faults(random.Random(1), 3000.0, COMMON)
    assert {fault.kind for fault in faults} == set(KINDS) - {EMPTY_BUS}
    assert not confuses_controller("bus killed")
    assert confuses_controller("at a point: controller killed")
