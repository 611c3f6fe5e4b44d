"""What Slurmbus adds to a job of one second, side by side with bare Slurm in the same run.

Added time is the time of ``run()`` from its start to its return, minus the time that the same payload takes from
``sbatch`` to the controller's COMPLETED, seen by asking every 10 ms on the controller's own host.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import dagster as dg
from integration.conftest import SITES
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess

from dagster_slurmbus import PipesSlurmClient, SlurmQueueConfig
from slurmbus.home import Home

ROUNDS = 15
BARE = """
import subprocess, time
begin = time.monotonic()
job = subprocess.run(["sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 1"], capture_output=True, text=True, check=True).stdout.strip()
while subprocess.run(["squeue", "-h", "-j", job, "-t", "PD,R,CG"], capture_output=True, text=True).stdout.strip():
    time.sleep(0.01)
print(time.monotonic() - begin)
"""


def test_added_time(
    cluster: Cluster, home: Home, alice_agent: AgentProcess, monkeypatch: object, tmp_path: Path
) -> None:
    import os

    os.environ["SLURMBUS_HOME"] = str(home.path)
    client = PipesSlurmClient(site=SITES["alice"], queue=SlurmQueueConfig(partition="main"))
    taken: list[float] = []

    @dg.asset
    def second(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        begin = time.monotonic()
        completed = client.run(context=context, command=["sleep", "1"])
        taken.append(time.monotonic() - begin)
        return completed.get_materialize_result()

    bare: list[float] = []
    for _ in range(ROUNDS + 1):
        assert dg.materialize([second]).success
        bare.append(float(cluster.exec("login", ["python3", "-c", BARE], user="alice").stdout))
    added = [mine - theirs for mine, theirs in zip(taken[1:], bare[1:], strict=True)]
    for name, values in (("run()", taken[1:]), ("bare Slurm", bare[1:]), ("added", added)):
        print(f"{name:>12}: median {statistics.median(values):.3f} s, from {min(values):.3f} to {max(values):.3f} s")
