"""Asset checks on the figures of the latest materialization: was what it asked for used?"""

# No "from __future__ import annotations" here: Dagster reads the annotation of a check's context at run time.
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_slurmbus import _compat
from dagster_slurmbus.outcomes import PREFIX
from dagster_slurmbus.units import size

_CPU = "cpu_efficiency"
_ALLOCATED = "memory_allocated_bytes"
_USED = "memory_efficiency"

Figures = Mapping[str, Any]
Judge = Callable[[Figures], tuple[bool, str]]
Asset = dg.AssetsDefinition | dg.AssetSpec | dg.AssetKey | str | Sequence[str]


def cpu_efficiency_check(
    asset: Asset,
    *,
    minimum: float = 0.5,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
    name: str = "cpu_efficiency",
) -> dg.AssetChecksDefinition:
    """Check that the job behind an asset used enough of the CPUs that it had.

    Of a partitioned asset every partition is checked by itself when the check runs for one (Dagster passes the
    partition on), else the partition that was materialized last.

    Args:
        asset: whose latest materialization is looked at.
        minimum: the smallest good CPU efficiency: CPU time over allocated CPUs times elapsed time, 0 to 1.
        severity: of a failed check.
        name: the check's, unique for the asset.
    """
    if not 0 < minimum <= 1:
        raise ValueError(f"minimum={minimum}: it must be more than 0 and at most 1")

    def judge(figures: Figures) -> tuple[bool, str]:
        efficiency = float(figures[_CPU])
        advice = "" if efficiency >= minimum else ": ask for fewer CPUs, or let it use them"
        return efficiency >= minimum, f"used {efficiency:.0%} of its CPU time, {minimum:.0%} is wanted{advice}"

    words = f"At least {minimum:.0%} of the CPU time is used."
    return _check(asset, name, words, severity, _CPU, judge)


def memory_headroom_check(
    asset: Asset,
    *,
    minimum: float = 0.1,
    maximum: float | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
    name: str = "memory_headroom",
) -> dg.AssetChecksDefinition:
    """Check that the job behind an asset had memory to spare, and, when ``maximum`` is set, not too much of it.

    Args:
        asset: whose latest materialization is looked at; see ``cpu_efficiency_check`` for partitions.
        minimum: the part of its memory that must have stayed free at the peak, 0 to 1.
        maximum: the part that may have stayed free.
        severity: of a failed check.
        name: the check's, unique for the asset.
    """
    if not 0 <= minimum < (1 if maximum is None else maximum) <= 1:
        raise ValueError(f"minimum={minimum}, maximum={maximum}: parts of 1, the minimum less than the maximum")

    def judge(figures: Figures) -> tuple[bool, str]:
        free = 1 - float(figures[_USED])
        told = f" of {size(int(figures[_ALLOCATED]))}" if _ALLOCATED in figures else ""
        if free < minimum:
            return False, f"{free:.0%}{told} stayed free, at least {minimum:.0%} is wanted: ask for more memory"
        if maximum is not None and free > maximum:
            return False, f"{free:.0%}{told} stayed free, at most {maximum:.0%} is wanted: ask for less memory"
        return True, f"{free:.0%}{told} stayed free"

    words = f"At least {minimum:.0%} of the memory stays free" + (f", at most {maximum:.0%}." if maximum else ".")
    return _check(asset, name, words, severity, _USED, judge)


def _check(
    asset: Asset, name: str, description: str, severity: dg.AssetCheckSeverity, figure: str, judge: Judge
) -> dg.AssetChecksDefinition:
    key = asset.key if isinstance(asset, dg.AssetsDefinition | dg.AssetSpec) else dg.AssetKey.from_coercible(asset)

    @dg.asset_check(asset=key, name=name, description=description)
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        found = _compat.latest_materialization(context, key)
        named = found.metadata.items() if found is not None else ()
        figures = {metric.removeprefix(PREFIX): value.value for metric, value in named if metric.startswith(PREFIX)}
        about: dict[str, Any] = {"partition": found.partition} if found is not None and found.partition else {}
        passed, words = True, "it hasn't been materialized yet"
        if figure in figures:
            passed, words = judge(figures)
            about |= {figure: figures[figure], "job_id": figures.get("job_id")}
        elif found is not None:
            words = "its latest materialization has no such figure: it wasn't a job of Slurmbus, or nobody measured it"
        metadata = {name: value for name, value in about.items() if value is not None}
        return dg.AssetCheckResult(passed=passed, severity=severity, description=words, metadata=metadata)

    return check
