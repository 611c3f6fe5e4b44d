"""What Slurmbus adds to a job of one second, side by side with bare Slurm in the same run.

Added time is the time of ``run()`` from its start to its return, minus the time that the same payload takes from
``sbatch`` until the controller has finished it, asked for every 10 ms on the login node.
"""

import statistics
import time

import dagster as dg
import pytest

from dagster_slurmbus import PipesSlurmClient, SlurmQueueConfig
from integration.conftest import SITES
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess

pytest_plugins = ["integration.conftest"]

ROUNDS = 15
BARE = """
import subprocess, time

def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

begin = time.monotonic()
job = run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 1")
while run("squeue", "--noheader", "--job=" + job, "--states=PENDING,RUNNING,COMPLETING"):
    time.sleep(0.01)
print(time.monotonic() - begin)
"""


def show(name: str, values: list[float]) -> None:
    print(f"{name:>22}: median {statistics.median(values):.3f} s, from {min(values):.3f} to {max(values):.3f} s")


def test_added_time(cluster: Cluster, home: Home, alice_agent: AgentProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    client = PipesSlurmClient(site=SITES["alice"], queue=SlurmQueueConfig(partition="main"))
    taken: list[float] = []
    outside_slurm: list[float] = []

    @dg.asset
    def second(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        begin = time.monotonic()
        completed = client.run(context=context, command=["sleep", "1"])
        taken.append(time.monotonic() - begin)
        timings = completed.record.timings
        outside_slurm.append(taken[-1] - (timings["ended"] - timings["submitted"]))
        return completed.get_materialize_result()

    bare: list[float] = []
    for _ in range(ROUNDS + 1):  # the first one warms up
        assert dg.materialize([second]).success
        bare.append(float(cluster.exec("login", ["python3", "-c", BARE], user="alice").stdout))
    print()
    show("run()", taken[1:])
    show("bare Slurm", bare[1:])
    show("added, pair by pair", [mine - theirs for mine, theirs in zip(taken[1:], bare[1:], strict=True)])
    show("outside of Slurm", outside_slurm[1:])
    print(f"{'median over median':>22}: {statistics.median(taken[1:]) / statistics.median(bare[1:]):.2f}")
