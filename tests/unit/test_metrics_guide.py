"""The guide on metrics: its code runs, and its table has every figure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg

import dagster_slurmbus
from dagster_slurmbus import FinishedJob
from dagster_slurmbus.metrics import metrics_metadata
from dagster_slurmbus.outcomes import success_metadata
from slurmbus_protocol.messages import Accounting, AccountingStep, JobOptions, Live, Record, Start, Usage, Used
from slurmbus_protocol.states import JobState

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "metrics.md").read_text()
WHERE_IT_RAN = {"key", "site", "job_id", "state", "partition", "nodes", "node_list", "cpus", "starts"} | {
    "submit_time",
    "start_time",
    "end_time",
}


def full() -> Record:
    """A job on two nodes of which everything is known."""
    step = AccountingStep(step="0", name="x", state="COMPLETED", ave_rss=1, tasks=2)
    live = Live(at=1.0, node="c1", cpus=1, cpu_seconds=1.0, cpu_percent=1.0, rss=1, peak_rss=1, processes=1)
    usage = Usage(cpu_seconds=1.0, max_rss=1, elapsed=3600.0)
    accounting = Accounting(
        state="COMPLETED",
        exit_code=0,
        signal=0,
        elapsed=3600.0,
        cpu_seconds=1.0,
        alloc_cpus=2,
        max_rss=1,
        alloc_tres="mem=1G,gres/gpu=2",
        used=Used(disk_read=1, disk_written=1, energy_joules=1.0, gpu_memory=1, gpu_percent=1.0),
        steps=(step,),
        steps_in_all=1,
    )
    return Record(
        key="01JD0000000000000000000000",
        site="a",
        epoch=1,
        name="x",
        submitter="me",
        created_at=1.0,
        updated_at=1.0,
        state=JobState.COMPLETED,
        nodes=2,
        alloc_cpus=2,
        submit_time=1.0,
        start_time=2.0,
        options=JobOptions(ntasks=2, time_limit_minutes=120),
        starts=(Start(number=0, job_id=1, node="c1", nonce="n", usage=usage, live=live),),
        accounting=accounting,
    )


def test_every_figure_is_in_the_table() -> None:
    named = set(re.findall(r"`(\w+)`", "".join(line for line in GUIDE.splitlines() if line.startswith("| `"))))
    given = {name.removeprefix("slurmbus/") for name in (metrics_metadata(full()) | success_metadata(full()))}
    assert given - WHERE_IT_RAN == named - {"attempts"}


def test_its_code_runs() -> None:
    @dg.asset
    def model() -> None: ...

    names: dict[str, Any] = {**vars(dagster_slurmbus), "dg": dg, "model": model}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(block, names)
    assert names["compute"].on_out_of_memory.limit == "64G"
    assert len(names["checks"]) == 2
    found = names["price"](FinishedJob(full(), metrics_metadata(full()), {}))
    assert found == {"euros": 0.04}
