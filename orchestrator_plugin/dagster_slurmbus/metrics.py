"""All figures of a job as metadata: what it had, what it used of that, and its steps.

Numbers are numbers, so that Dagster plots them over time. What nobody measured is left out.
"""

from __future__ import annotations

import re
from typing import Any

import dagster as dg

from dagster_slurmbus.outcomes import Metadata, figures, is_on_one_node, live_use, prefixed
from dagster_slurmbus.steps import memory_at_once
from dagster_slurmbus.tables import steps_table
from slurmbus_protocol.messages import Record

MIB = 1024**2
_SECONDS_PER_HOUR = 3600
_UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4}
_TRES = re.compile(r"(?P<number>[\d.]+)(?P<unit>[KMGT]?)")
_URL = re.compile(r"https?://\S+")


def metrics_metadata(record: Record) -> Metadata:
    """Give what the job had and used, beyond the figures that :mod:`dagster_slurmbus.outcomes` gives."""
    accounting = record.accounting
    used = accounting.used if accounting else None
    had = figures(record)
    elapsed, gpus, memory = had.elapsed, allocated_gpus(record), allocated_memory(record)
    limit = record.options.time_limit_minutes
    hours = elapsed / _SECONDS_PER_HOUR if elapsed is not None else None
    return {
        **facts_metadata(record),
        **prefixed(
            {
                "core_hours": _float(hours * had.cpus if hours is not None and had.cpus else None),
                "cpu_seconds": _float(had.cpu_seconds),
                "memory_allocated_bytes": _int(memory),
                "memory_efficiency": _float(memory_efficiency(record)),
                "time_limit_seconds": _int(limit * 60 if limit else None),
                "time_limit_used": _float(elapsed / (limit * 60) if elapsed is not None and limit else None),
                "gpus": _int(gpus or None),
                "gpu_hours": _float(hours * gpus if hours is not None and gpus else None),
                "gpu_utilization": _float(used.gpu_percent / 100 if used and used.gpu_percent is not None else None),
                "gpu_memory_bytes": _int(used.gpu_memory if used else None),
                "energy_joules": _float(used.energy_joules if used else None),
                "disk_read_bytes": _int(disk_read(record)),
                "disk_written_bytes": _int(disk_written(record)),
                "steps": steps_table(accounting),
            }
        ),
        **_first_node(record),
    }


def facts_metadata(record: Record) -> Metadata:
    """Give what the launcher of the last start has found out; addresses can be clicked."""
    facts = record.starts[-1].facts if record.starts else {}
    return prefixed({name: fact(value) for name, value in facts.items()})


def fact(value: str) -> dg.MetadataValue[Any]:
    """Give an address as one, everything else as text."""
    return dg.MetadataValue.url(value) if is_address(value) else dg.MetadataValue.text(value)


def is_address(value: str) -> bool:
    """Tell whether this is an address that a browser takes."""
    return _URL.fullmatch(value) is not None


def allocated_gpus(record: Record) -> int:
    """Count the GPUs that the job had on all its nodes, by accounting, else by what it asked for."""
    if record.accounting is not None and record.accounting.alloc_tres:
        counts = _tres(record.accounting.alloc_tres)
        typed = [number for name, number in counts.items() if name.startswith("gres/gpu:")]
        return int(counts.get("gres/gpu", sum(typed)))
    return gpus_asked_for(record)


def gpus_asked_for(record: Record) -> int:
    """Count the GPUs that the request names."""
    options = record.options
    nodes = record.nodes or options.nodes or 1
    total = _count(options.gpus) or nodes * _count(options.gpus_per_node)
    in_gres = [part for part in (options.gres or "").split(",") if part.partition(":")[0].strip() == "gpu"]
    return total or nodes * sum(_count(part.partition(":")[2] or "1") for part in in_gres)


def allocated_memory(record: Record) -> int | None:
    """Give the bytes that the job had on all its nodes: by accounting, else by what it asked for."""
    if record.accounting is not None and (told := _tres(record.accounting.alloc_tres).get("mem")):
        return int(told)
    options, live = record.options, live_use(record)
    if options.mem_per_node_mib:
        return options.mem_per_node_mib * MIB * (record.nodes or 1)
    if options.mem_per_cpu_mib and record.alloc_cpus:
        return options.mem_per_cpu_mib * MIB * record.alloc_cpus
    return live.memory_limit if live is not None and (record.nodes or 1) == 1 else None


def memory_efficiency(record: Record) -> float | None:
    """Give the part of its memory, on all nodes together, that the job used at its peak.

    On several nodes that is the sum over the steps that ran side by side, or what was seen on the first node alone
    should that be more.
    """
    allocated = allocated_memory(record)
    if is_on_one_node(record):
        peak = figures(record).peak_memory
    elif peak := memory_at_once(record.accounting):
        live = live_use(record)
        peak = max(peak, live.peak_rss if live else 0)
    return peak / allocated if peak and allocated else None


def _first_node(record: Record) -> Metadata:
    """Give what the runner saw of a job on several nodes, and on which one."""
    live = live_use(record)
    if live is None or (record.nodes or 1) == 1:
        return {}
    return prefixed(
        {"first_node": dg.MetadataValue.text(live.node), "first_node_peak_memory_bytes": _int(live.peak_rss)}
    )


def disk_read(record: Record) -> int | None:
    """Give the bytes that the job read: by accounting, else by its runner."""
    used = record.accounting.used if record.accounting else None
    return used.disk_read if used else _of_live(record, "read_bytes")


def disk_written(record: Record) -> int | None:
    """Give the bytes that the job wrote: by accounting, else by its runner."""
    used = record.accounting.used if record.accounting else None
    return used.disk_written if used else _of_live(record, "written_bytes")


def _of_live(record: Record, name: str) -> int | None:
    """Give a figure that the runner saw, when it saw all of the job."""
    live = live_use(record)
    return getattr(live, name) if live is not None and is_on_one_node(record) else None


# ---------------------------------------------------------------------- reading


def _tres(text: str) -> dict[str, float]:
    """Read Slurm's trackable resources; what is no number is left out."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        match = _TRES.fullmatch(value)
        if match is not None:
            found[name] = float(match["number"]) * _UNITS[match["unit"]]
    return found


def _count(text: str | None) -> int:
    """Read ``[type:]count``, several separated by commas; a type alone is one."""
    total = 0
    for part in (text or "").split(",") if text else ():
        last = part.split("(")[0].rpartition(":")[2]
        total += int(last) if last.isdigit() else 1
    return total


def _int(value: int | None) -> dg.MetadataValue[Any] | None:
    return None if value is None else dg.MetadataValue.int(value)


def _float(value: float | None) -> dg.MetadataValue[Any] | None:
    return None if value is None else dg.MetadataValue.float(float(value))
