"""What is shown as tables: the steps of a job, and the attempts of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from dagster_slurmbus.outcomes import Metadata, figures, prefixed
from dagster_slurmbus.units import clock
from slurmbus_protocol.messages import Accounting, AccountingStep, Record

_MIB = 1024**2


def _efficiency(step: AccountingStep) -> float | None:
    if not step.elapsed or not step.alloc_cpus:
        return None
    return step.cpu_seconds / (step.elapsed * step.alloc_cpus)


def _mib(number: int | None) -> float | None:
    return None if number is None else number / _MIB


_COLUMNS: dict[str, tuple[str, Callable[[AccountingStep], Any], str]] = {
    "step": ("string", lambda step: step.step, "batch, extern, or a number"),
    "name": ("string", lambda step: step.name, ""),
    "state": ("string", lambda step: step.state, ""),
    "exit code": ("string", lambda step: f"{step.exit_code}:{step.signal}", "exit code and signal"),
    "elapsed s": ("float", lambda step: step.elapsed, ""),
    "nodes": ("int", lambda step: step.nodes, ""),
    "tasks": ("int", lambda step: step.tasks, ""),
    "CPUs": ("int", lambda step: step.alloc_cpus, ""),
    "CPU s": ("float", lambda step: step.cpu_seconds, "CPU time of all tasks"),
    "CPU efficiency": ("float", _efficiency, "CPU time over allocated CPUs times elapsed time"),
    "max memory MiB": ("float", lambda step: _mib(step.max_rss), "of the task with most of it"),
    "mean memory MiB": ("float", lambda step: _mib(step.ave_rss), "of its tasks"),
    "read MiB": ("float", lambda step: _mib(step.disk_read), ""),
    "written MiB": ("float", lambda step: _mib(step.disk_written), ""),
    "GPU use %": ("float", lambda step: step.gpu_percent, ""),
    "GPU memory MiB": ("float", lambda step: _mib(step.gpu_memory), ""),
    "energy J": ("float", lambda step: step.energy_joules, ""),
}


def steps_table(accounting: Accounting | None) -> dg.MetadataValue[Any] | None:
    """Give the steps of a job as rows; None when accounting has none."""
    if accounting is None or not accounting.steps:
        return None
    rows = [{name: value(step) for name, (_, value, _) in _COLUMNS.items()} for step in accounting.steps]
    columns = {name: column for name, column in _COLUMNS.items() if any(row[name] is not None for row in rows)}
    omitted = accounting.steps_in_all - len(accounting.steps)
    if omitted > 0:
        rows.append({"step": "…", "name": f"{omitted} more", **dict.fromkeys(list(_COLUMNS)[2:])})
    return table(columns, rows)


def table(columns: Mapping[str, tuple[str, Any, str]], rows: list[dict[str, Any]]) -> dg.MetadataValue[Any]:
    """Give rows as a table: column -> (type, anything, description)."""
    schema = dg.TableSchema(
        columns=[
            dg.TableColumn(name=name, type=kind, description=words or None)
            for name, (kind, _, words) in columns.items()
        ]
    )
    records = [dg.TableRecord({name: _cell(row[name]) for name in columns}) for row in rows]
    return dg.MetadataValue.table(records=records, schema=schema)


def _cell(value: Any) -> Any:
    return "" if value is None else round(value, 3) if isinstance(value, float) else value


_ATTEMPT_COLUMNS: dict[str, tuple[str, Any, str]] = {
    "attempt": ("int", None, ""),
    "job": ("string", None, "Slurm's id, and the job's key"),
    "state": ("string", None, ""),
    "memory": ("string", None, "what it asked for"),
    "time limit": ("string", None, "what it asked for"),
    "elapsed s": ("float", None, ""),
    "peak memory MiB": ("float", None, ""),
}


def attempt_row(number: int, record: Record) -> dict[str, Any]:
    """Give one attempt of several as a row."""
    used, options = figures(record), record.options
    memory = f"{options.mem_per_node_mib}M" if options.mem_per_node_mib else ""
    memory = memory or (f"{options.mem_per_cpu_mib}M per CPU" if options.mem_per_cpu_mib else "")
    memory = memory or (f"{options.mem_per_gpu_mib}M per GPU" if options.mem_per_gpu_mib else "")
    return {
        "attempt": number,
        "job": f"{record.job_id} ({record.key})",
        "state": record.state.value,
        "memory": memory,
        "time limit": clock(options.time_limit_minutes) if options.time_limit_minutes else "",
        "elapsed s": used.elapsed,
        "peak memory MiB": _mib(used.peak_memory),
    }


def attempts_metadata(rows: list[dict[str, Any]]) -> Metadata:
    """Give the attempts of one call as a table, when there was more than one."""
    if len(rows) < 2:  # noqa: PLR2004 - one is no table
        return {}
    return prefixed({"attempts": table(_ATTEMPT_COLUMNS, rows)})
