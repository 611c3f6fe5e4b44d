"""What accounting says of the steps of a job, by sacct and, where there is none, by pyslurm's objects."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from contract.native_site import NativeSite
from contract.sites import end_of
from slurmbus_agent.scheduler.base import AccountingRow
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_cluster import Cluster

MIB = 1024**2
BODY = """
srun -n2 --ntasks-per-node=1 python3 -c '
import time
held = bytearray(100 * 1024**2)
open("/dev/null", "wb").write(held)
end = time.process_time() + 1.25
while time.process_time() < end: pass
'
srun -n1 -N1 false
exit 0
"""


@contextmanager
def without_sacct(cluster: Cluster) -> Iterator[None]:
    cluster.exec("login", ["mv", "/usr/bin/sacct", "/usr/bin/sacct.away"])
    try:
        yield
    finally:
        cluster.exec("login", ["mv", "/usr/bin/sacct.away", "/usr/bin/sacct"])


async def accounted(scheduler: ChildScheduler, job_id: int, name: str, since: float) -> AccountingRow:
    give_up = time.monotonic() + 60
    while True:
        rows = await scheduler.accounting([(job_id, name)], since)
        if rows and rows[0].final and len(rows[0].accounting.steps) == 3:
            return rows[0]
        assert time.monotonic() < give_up, rows
        await asyncio.sleep(0.1)


def test_the_steps_of_a_job(cluster: Cluster) -> None:
    alice = NativeSite(cluster)

    async def check() -> None:
        since, name = time.time() - 60, f"steps-{uuid.uuid4().hex[:8]}"
        async with alice.open() as scheduler:
            assert isinstance(scheduler, ChildScheduler)
            batch = alice.batch_job(name, BODY, nodes=2, ntasks=2, gpus_per_node="1", mem_per_node_mib=400)
            job_id = await scheduler.submit(batch)
            assert (await end_of(scheduler, job_id)).state == "COMPLETED"
            row = await accounted(scheduler, job_id, name, since)
            with without_sacct(cluster):
                plain = await accounted(scheduler, job_id, name, since)
        for found in (row, plain):
            accounting = found.accounting
            steps = {step.step: step for step in accounting.steps}
            assert set(steps) == {"batch", "0", "1"}
            assert accounting.steps_in_all == 3
            assert (steps["0"].name, steps["0"].state, steps["0"].tasks, steps["0"].nodes) == (
                "python3",
                "COMPLETED",
                2,
                2,
            )
            assert (steps["1"].name, steps["1"].state, steps["1"].exit_code) == ("false", "FAILED", 1)
            times = (
                found.start_time,
                steps["0"].start_time,
                steps["0"].end_time,
                steps["1"].start_time,
                found.end_time,
            )
            assert list(times) == sorted(time or 0.0 for time in times)
            assert steps["0"].max_rss is not None
            assert 100 * MIB < steps["0"].max_rss < 200 * MIB
            assert accounting.max_rss == steps["0"].max_rss
            assert steps["0"].disk_written is not None
            assert steps["0"].disk_written >= 200 * MIB
            assert accounting.used is not None
            assert accounting.used.disk_written is not None
            assert accounting.used.disk_written >= 200 * MIB
            # Nothing in these containers measures energy or GPUs.
            assert (accounting.used.energy_joules, accounting.used.gpu_percent) == (None, None)
            assert "gres/gpu=2" in accounting.alloc_tres
        # Two tasks of 1.25 s each: only sacct has the fractions.
        assert row.accounting.steps[1].cpu_seconds >= 2.5
        assert row.accounting.cpu_seconds >= row.accounting.steps[1].cpu_seconds
        assert row.accounting.cpu_seconds % 1
        assert plain.accounting.cpu_seconds % 1 == 0
        assert (plain.accounting.state, plain.end_time) == (row.accounting.state, row.end_time)

    asyncio.run(check())
