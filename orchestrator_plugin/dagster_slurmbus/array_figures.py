"""The figures of a whole array, under the names that those of a single job have: checks and plots take both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import dagster as dg

from dagster_slurmbus.metrics import allocated_gpus, allocated_memory, disk_read, disk_written, memory_efficiency
from dagster_slurmbus.outcomes import Figures, figures
from slurmbus_protocol.messages import Record, Used

T = TypeVar("T", int, float)
_SECONDS_PER_HOUR = 3600


def array_figures(records: Sequence[Record]) -> Mapping[str, dg.MetadataValue[Any] | None]:
    """Give sums over the tasks of what is used up, and of what has a limit the task that came nearest to it.

    Tasks of which a figure isn't known don't count in it; what is known of no task is None.
    """
    used = [figures(record) for record in records]
    on_cpus = [one for one in used if one.cpu_efficiency is not None]
    allocated = sum((one.cpus or 0) * (one.elapsed or 0.0) for one in on_cpus)
    accounted = [one for record in records if (one := _accounted(record)) is not None]
    fullest = max(records, key=lambda record: memory_efficiency(record) or 0.0)
    slowest = max(records, key=lambda record: _time_limit_used(record) or 0.0)
    limit = slowest.options.time_limit_minutes
    return {
        "elapsed_seconds_in_all": _float(_sum(one.elapsed for one in used)),
        "node_hours": _float(_sum(one.node_hours for one in used)),
        "core_hours": _float(_sum(map(_core_hours, used))),
        "cpu_seconds": _float(_sum(one.cpu_seconds for one in used)),
        "cpu_efficiency": _float(sum(one.cpu_seconds or 0.0 for one in on_cpus) / allocated if on_cpus else None),
        "peak_memory_bytes": _int(_most(one.peak_memory for one in used)),
        "memory_allocated_bytes": _int(allocated_memory(fullest)),
        "memory_efficiency": _float(memory_efficiency(fullest)),
        "time_limit_seconds": _int(limit * 60 if limit else None),
        "time_limit_used": _float(_time_limit_used(slowest)),
        "gpu_hours": _float(_sum(map(_gpu_hours, records))),
        "gpu_utilization": _float(_gpu_utilization(records)),
        "gpu_memory_bytes": _int(_most(one.gpu_memory for one in accounted)),
        "energy_joules": _float(_sum(one.energy_joules for one in accounted)),
        "disk_read_bytes": _int(_sum(map(disk_read, records))),
        "disk_written_bytes": _int(_sum(map(disk_written, records))),
    }


def _accounted(record: Record) -> Used | None:
    return record.accounting.used if record.accounting is not None else None


def _core_hours(used: Figures) -> float | None:
    return used.cpus * used.elapsed / _SECONDS_PER_HOUR if used.cpus and used.elapsed is not None else None


def _time_limit_used(record: Record) -> float | None:
    limit, elapsed = record.options.time_limit_minutes, figures(record).elapsed
    return elapsed / (limit * 60) if limit and elapsed is not None else None


def _gpu_hours(record: Record) -> float | None:
    gpus, elapsed = allocated_gpus(record), figures(record).elapsed
    return gpus * elapsed / _SECONDS_PER_HOUR if gpus and elapsed is not None else None


def _gpu_utilization(records: Sequence[Record]) -> float | None:
    """Give the mean over the tasks, each as long as it had its GPUs."""
    known = [
        (hours, used.gpu_percent / 100)
        for record in records
        if (used := _accounted(record)) is not None and used.gpu_percent is not None and (hours := _gpu_hours(record))
    ]
    return sum(hours * part for hours, part in known) / sum(hours for hours, _ in known) if known else None


def _sum(values: Iterable[T | None]) -> T | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _int(value: int | None) -> dg.MetadataValue[Any] | None:
    return None if value is None else dg.MetadataValue.int(value)


def _float(value: float | None) -> dg.MetadataValue[Any] | None:
    return None if value is None else dg.MetadataValue.float(float(value))
