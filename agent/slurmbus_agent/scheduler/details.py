"""What accounting knows of a job's steps: from ``sacct`` where there is one, else from pyslurm's objects.

pyslurm cuts each step's CPU time to whole seconds (3 s of a job of several steps that took 5.3 s) and doesn't give what
steps used of GPUs. sacct asks the same daemon and says both; it costs about 10 ms a question.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import msgspec

from slurmbus_agent.scheduler import sacct
from slurmbus_agent.scheduler.base import AccountingRow
from slurmbus_protocol.messages import Accounting, AccountingStep

SACCT_WITHIN = 4.0
"""Seconds for sacct; accounting has just answered pyslurm. The whole question has 10."""


def of_objects(row: Any, accounting: Accounting) -> Accounting:
    """Add the steps of a pyslurm.db.Job."""
    steps = [_step(step) for step in row.steps.values()]
    return sacct.summed(accounting, steps, float(row.stats.consumed_energy) or None)


def of_sacct(
    rows: list[AccountingRow], since: float, program: str | None, conf: Mapping[str, str]
) -> list[AccountingRow]:
    """Replace the figures of finished jobs by sacct's; the rows stay as they are where it can't tell."""
    wanted = {(row.job_id, row.name) for row in rows if row.final}
    if program is None or not wanted:
        return rows
    env = {**os.environ, **sacct.ENVIRONMENT, **conf}
    try:
        said = subprocess.run(
            [program, *sacct.arguments(wanted, since)],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SACCT_WITHIN,
            check=True,
            encoding="utf-8",
            errors="replace",
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return rows
    found = {(row.job_id, row.name, row.end_time): row.accounting for row in sacct.rows(said) if row.final}
    return [
        msgspec.structs.replace(row, accounting=_merged(row.accounting, better))
        if (better := found.get((row.job_id, row.name, row.end_time))) is not None
        else row
        for row in rows
    ]


def _merged(ours: Accounting, better: Accounting) -> Accounting:
    """Keep what decides: sacct takes 128 off exit codes from 128 on."""
    return msgspec.structs.replace(better, state=ours.state, exit_code=ours.exit_code, signal=ours.signal)


def _step(step: Any) -> AccountingStep:
    used, tasks = step.stats, step.ntasks
    return AccountingStep(
        step=str(step.id),
        name=step.name or "",
        state=step.state,
        exit_code=step.exit_code or 0,
        signal=step.exit_code_signal or 0,
        elapsed=float(step.elapsed_time or 0),
        tasks=tasks,
        nodes=step.num_nodes,
        alloc_cpus=step.cpus,
        cpu_seconds=float(used.total_cpu_time),
        max_rss=used.max_resident_memory or None,
        ave_rss=used.avg_resident_memory or None,
        disk_read=used.avg_disk_read * (tasks or 1),
        disk_written=used.avg_disk_write * (tasks or 1),
        energy_joules=float(used.consumed_energy) or None,
        start_time=step.start_time or None,
        end_time=step.end_time or None,
    )
