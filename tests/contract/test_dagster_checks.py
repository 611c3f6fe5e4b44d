"""The asset checks on figures, in a real Dagster instance."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
from typing import Any

import dagster as dg
import pytest

from dagster_slurmbus import cpu_efficiency_check, memory_headroom_check

GIB = 1024**3
DAYS = dg.StaticPartitionsDefinition(["mon", "tue"])


def figures(**values: Any) -> dict[str, Any]:
    return {f"slurmbus/{name}": value for name, value in values.items()}


def asset_with(metadata: dict[str, dict[str, Any]]) -> dg.AssetsDefinition:
    """An asset that was a job, as far as its metadata say; of each partition others."""

    @dg.asset(partitions_def=DAYS if len(metadata) > 1 else None)
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return dg.MaterializeResult(metadata=metadata[context.partition_key if context.has_partition_key else ""])

    return thing


def outcome(result: dg.ExecuteInProcessResult) -> tuple[bool, str, dg.AssetCheckSeverity, dict[str, Any]]:
    (evaluation,) = result.get_asset_check_evaluations()
    metadata = {name: value.value for name, value in evaluation.metadata.items()}
    return evaluation.passed, evaluation.description or "", evaluation.severity, metadata


def checked(
    instance: dg.DagsterInstance, metadata: dict[str, Any], check: Any, **options: Any
) -> tuple[bool, str, dg.AssetCheckSeverity, dict[str, Any]]:
    thing = asset_with({"": metadata})
    return outcome(dg.materialize([thing, check(thing, **options)], instance=instance))


@pytest.mark.parametrize(
    ("efficiency", "passed", "words"),
    [
        (0.8, True, "used 80% of its CPU time, 60% is wanted"),
        (0.25, False, "used 25% of its CPU time, 60% is wanted: ask for fewer CPUs, or let it use them"),
    ],
)
def test_cpu_efficiency(instance: dg.DagsterInstance, efficiency: float, passed: bool, words: str) -> None:
    metadata = figures(cpu_efficiency=efficiency, job_id=17)
    found = checked(instance, metadata, cpu_efficiency_check, minimum=0.6)
    assert found == (passed, words, dg.AssetCheckSeverity.WARN, {"cpu_efficiency": efficiency, "job_id": 17})


@pytest.mark.parametrize(
    ("used", "passed", "words"),
    [
        (0.95, False, "5% of 4 GiB stayed free, at least 10% is wanted: ask for more memory"),
        (0.5, True, "50% of 4 GiB stayed free"),
        (0.1, False, "90% of 4 GiB stayed free, at most 80% is wanted: ask for less memory"),
    ],
)
def test_memory_headroom(instance: dg.DagsterInstance, used: float, passed: bool, words: str) -> None:
    metadata = figures(memory_efficiency=used, memory_allocated_bytes=4 * GIB)
    found = checked(instance, metadata, memory_headroom_check, maximum=0.8, severity=dg.AssetCheckSeverity.ERROR)
    assert found == (passed, words, dg.AssetCheckSeverity.ERROR, {"memory_efficiency": used})


def test_an_asset_that_was_no_job_passes_and_says_so(instance: dg.DagsterInstance) -> None:
    passed, words, _, _ = checked(instance, {"rows": 3}, cpu_efficiency_check)
    assert passed
    assert words.startswith("its latest materialization has no such figure")


def test_an_asset_that_was_never_materialized_passes_and_says_so(instance: dg.DagsterInstance) -> None:
    thing, check = asset_with({"": {}}), cpu_efficiency_check("thing")
    result = dg.materialize([thing, check], instance=instance, selection=dg.AssetSelection.checks(check))
    assert outcome(result)[:2] == (True, "it hasn't been materialized yet")


def test_a_check_by_itself_looks_at_the_newest_materialization(instance: dg.DagsterInstance) -> None:
    thing = asset_with({"": figures(cpu_efficiency=0.1)})
    check = cpu_efficiency_check("thing")
    dg.materialize([thing], instance=instance)
    result = dg.materialize([thing, check], instance=instance, selection=dg.AssetSelection.checks(check))
    assert not outcome(result)[0]
    instance.report_runless_asset_event(dg.AssetMaterialization("thing", metadata=figures(cpu_efficiency=0.9)))
    result = dg.materialize([thing, check], instance=instance, selection=dg.AssetSelection.checks(check))
    assert outcome(result)[0]


def test_each_partition_is_judged_by_itself(instance: dg.DagsterInstance) -> None:
    thing = asset_with({"mon": figures(cpu_efficiency=0.9), "tue": figures(cpu_efficiency=0.1)})
    check = cpu_efficiency_check(thing, severity=dg.AssetCheckSeverity.ERROR)
    for partition, good in (("mon", True), ("tue", False), ("mon", True)):
        result = dg.materialize([thing, check], instance=instance, partition_key=partition)
        passed, _, severity, metadata = outcome(result)
        assert (passed, severity, metadata["partition"]) == (good, dg.AssetCheckSeverity.ERROR, partition)


def test_two_checks_on_one_asset(instance: dg.DagsterInstance) -> None:
    thing = asset_with({"": figures(cpu_efficiency=0.9, memory_efficiency=0.99)})
    checks = [cpu_efficiency_check(thing), memory_headroom_check(thing)]
    evaluations = dg.materialize([thing, *checks], instance=instance).get_asset_check_evaluations()
    assert {one.check_name: one.passed for one in evaluations} == {"cpu_efficiency": True, "memory_headroom": False}


@pytest.mark.parametrize("minimum", [0, -1, 1.5, 80])
def test_a_minimum_that_is_no_part_of_one_is_refused(minimum: float) -> None:
    with pytest.raises(ValueError, match="at most 1"):
        cpu_efficiency_check("thing", minimum=minimum)


@pytest.mark.parametrize("limits", [{"minimum": 0.5, "maximum": 0.4}, {"minimum": -0.1}, {"maximum": 2}])
def test_a_headroom_that_cant_be_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="parts of 1"):
        memory_headroom_check("thing", **limits)  # type: ignore[arg-type]
