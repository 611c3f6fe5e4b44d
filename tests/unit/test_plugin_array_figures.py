"""The figures of a whole array: sums of what is used up, and the task that came nearest to a limit."""

from __future__ import annotations

from typing import Any

import pytest

from dagster_slurmbus.array_figures import array_figures
from slurmbus_protocol.messages import Accounting, JobOptions, Record, Start, Usage, Used
from slurmbus_protocol.states import JobState

KEY = "01JD0000000000000000000000"
MIB = 1024**2


def task(index: int, *, cpu: float, elapsed: float, rss: int, used: Used | None = None, **fields: Any) -> Record:
    usage = Usage(cpu_seconds=cpu, max_rss=rss * MIB, elapsed=elapsed)
    start = Start(number=0, job_id=7, node="c1", nonce="n", started_at=1.0, usage=usage)
    accounting = Accounting(
        state="COMPLETED",
        exit_code=0,
        signal=0,
        elapsed=elapsed,
        cpu_seconds=cpu,
        max_rss=rss * MIB,
        alloc_cpus=2,
        alloc_nodes=1,
        alloc_tres="cpu=2,gres/gpu=1,mem=100M,node=1",
        used=used,
    )
    base: dict[str, Any] = {"key": KEY, "site": "s", "epoch": 1, "name": "n", "submitter": "me", "tasks": 3}
    base |= {"created_at": 1.0, "updated_at": 1.0, "state": JobState.COMPLETED, "task": index, "starts": (start,)}
    base |= {"options": JobOptions(mem_per_node_mib=100, time_limit_minutes=1), "nodes": 1, "alloc_cpus": 2}
    return Record(**{**base, "accounting": accounting if used else None, **fields})


def shown(*records: Record) -> dict[str, Any]:
    return {name: value.value for name, value in array_figures(records).items() if value is not None}


def test_sums_and_the_worst_task() -> None:
    first = Used(energy_joules=100.0, gpu_percent=50.0, gpu_memory=3, disk_read=1, disk_written=2)
    second = Used(energy_joules=50.0, gpu_percent=80.0, gpu_memory=2, disk_read=10)
    found = shown(
        task(0, cpu=10, elapsed=10, rss=90, used=first),
        task(1, cpu=10, elapsed=30, rss=20, used=second),
        task(2, cpu=0, elapsed=0, rss=0, starts=(), nodes=None, alloc_cpus=None, state=JobState.NODE_FAIL),
    )
    assert found == pytest.approx(
        {
            "elapsed_seconds_in_all": 40.0,
            "node_hours": 40 / 3600,
            "core_hours": 80 / 3600,
            "cpu_seconds": 20.0,
            "cpu_efficiency": 20 / 80,
            "peak_memory_bytes": 90 * MIB,
            "memory_allocated_bytes": 100 * MIB,
            "memory_efficiency": 0.9,
            "time_limit_seconds": 60,
            "time_limit_used": 0.5,
            "gpu_hours": 40 / 3600,
            "gpu_utilization": (10 * 0.5 + 30 * 0.8) / 40,
            "gpu_memory_bytes": 3,
            "energy_joules": 150.0,
            "disk_read_bytes": 11,
            "disk_written_bytes": 2,
        }
    )


def test_what_nobody_measured_is_left_out() -> None:
    nothing = {"starts": (), "nodes": None, "alloc_cpus": None, "options": JobOptions(), "state": JobState.NODE_FAIL}
    assert shown(task(0, cpu=0, elapsed=0, rss=0, **nothing)) == {}
