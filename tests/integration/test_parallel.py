"""MPI, torchrun and Spark on the real cluster: programs over both nodes, their failures, and nothing left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.bus_site import wait_until
from integration.jobs import Story, follow
from slurmbus.client import SiteClient
from slurmbus_cluster import Cluster
from slurmbus_protocol.messages import JobOptions, JobSpec
from slurmbus_protocol.plans import MpiPlan, SparkPlan, TorchrunPlan
from slurmbus_protocol.states import JobState

FOLDER = "/home/alice/parallel"
PYTHON = "/opt/payload/bin/python"
TWO_BY_TWO = JobOptions(nodes=2, ntasks_per_node=2)
NODES = ("c1", "c2")
NO_LIBUV = {"USE_LIBUV": "0"}
"""For Debian's PyTorch, which was built without it."""
PAYLOADS = ("mpi_sum.py", "spark_hosts.py", "torch_sum.py")


@pytest.fixture(scope="module")
def scripts(cluster: Cluster) -> str:
    """The folder of the payloads on the cluster."""
    for name in PAYLOADS:
        cluster.copy_to("login", Path(__file__).parent / "payloads" / name, f"{FOLDER}/{name}")
    return FOLDER


def left_on(cluster: Cluster, user: str = "alice") -> dict[str, str]:
    """Name a user's processes on the compute nodes."""
    found = {name: cluster.exec(name, ["pgrep", "-u", user, "-a"], check=False).stdout.strip() for name in NODES}
    return {name: words for name, words in found.items() if words}


def run(client: SiteClient, cluster: Cluster, plan: Any, **fields: Any) -> Story:
    """Run a job to its end, and look that nothing of it is left."""
    story = follow(client, client.submit(JobSpec(name="parallel", plan=plan, **fields)))
    wait_until(lambda: not left_on(cluster), f"processes left: {left_on(cluster)}")
    return story


def mpi(scripts: str, *args: str, **fields: Any) -> MpiPlan:
    return MpiPlan(argv=(PYTHON, f"{scripts}/mpi_sum.py", *args), mpi4py=True, **fields)


def sums(size: int = 4, hosts: list[str] | None = None) -> list[str]:
    total = size * (size + 1) // 2
    return [f"rank {rank} of {size}: sum {total} over {hosts or ['c1', 'c2']}" for rank in range(size)]


def test_ranks_of_mpi_add_up_over_both_nodes(alice: SiteClient, cluster: Cluster, scripts: str) -> None:
    story = run(alice, cluster, mpi(scripts, prefix=True), options=TWO_BY_TWO, env={"MPI4PY_MPIABI": "mpich"})
    assert story.record.state is JobState.COMPLETED, story.stderr
    assert sorted(story.stdout.splitlines()) == [f"[rank {n}] {line}" for n, line in enumerate(sums())]
    assert "4 ranks by srun --mpi=pmi2 on c1, c2" in story.stderr


@pytest.mark.parametrize(
    ("command", "abi", "kind"), [("mpirun.mpich", "mpich", "Hydra"), ("mpirun.openmpi", "openmpi", "Open MPI")]
)
def test_mpirun_of_both_kinds(
    alice: SiteClient, cluster: Cluster, scripts: str, command: str, abi: str, kind: str
) -> None:
    plan = mpi(scripts, how="mpirun", mpirun=command, prefix=True, interface="eth0", ranks_per_node=2)
    story = run(alice, cluster, plan, options=TWO_BY_TWO, env={"MPI4PY_MPIABI": abi})
    assert story.record.state is JobState.COMPLETED, story.stderr
    assert sorted(story.stdout.splitlines()) == [f"[rank {n}] {line}" for n, line in enumerate(sums())]
    assert f"4 ranks by {command} ({kind}) on c1, c2" in story.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "signal", "said"),
    [
        (("exit", "2", "3"), 3, None, "rank 2 on c2 ended with exit code 3, and so did the others"),
        (("kill", "1"), None, 11, "rank 1 on c1 ended with signal 11, and so did the others"),
    ],
)
def test_a_rank_that_fails_ends_the_job_with_its_code(
    alice: SiteClient,
    cluster: Cluster,
    scripts: str,
    words: tuple[str, ...],
    exit_code: int | None,
    signal: int | None,
    said: str,
) -> None:
    story = run(alice, cluster, mpi(scripts, *words), options=TWO_BY_TWO, env={"MPI4PY_MPIABI": "mpich"})
    assert story.record.state is JobState.FAILED
    start = story.record.starts[-1]
    assert (start.exit_code, start.signal) == (exit_code, signal), story.stderr
    assert said in story.stderr


@pytest.mark.parametrize("command", [None, "torchrun"])
def test_torchrun_reduces_over_both_nodes(
    alice: SiteClient, cluster: Cluster, scripts: str, command: str | None
) -> None:
    plan = TorchrunPlan(argv=(f"{scripts}/torch_sum.py",), python=PYTHON, torchrun=command)
    story = run(alice, cluster, plan, options=TWO_BY_TWO, env=NO_LIBUV)
    assert story.record.state is JobState.COMPLETED, story.stderr
    assert sorted(story.stdout.splitlines()) == [f"{line} after 0 restarts" for line in sums()]


def test_torchrun_starts_all_processes_again(alice: SiteClient, cluster: Cluster, scripts: str) -> None:
    plan = TorchrunPlan(argv=(f"{scripts}/torch_sum.py", "7"), python=PYTHON, max_restarts=1)
    story = run(alice, cluster, plan, options=TWO_BY_TWO, env=NO_LIBUV)
    assert story.record.state is JobState.COMPLETED, story.stderr
    assert sorted(story.stdout.splitlines()) == sorted(f"{line} after {n} restarts" for line in sums() for n in (0, 1))


def test_a_process_of_torchrun_that_fails_ends_the_job(alice: SiteClient, cluster: Cluster, scripts: str) -> None:
    plan = TorchrunPlan(argv=(f"{scripts}/torch_sum.py", "7"), python=PYTHON)
    story = run(alice, cluster, plan, options=TWO_BY_TWO, env=NO_LIBUV)
    assert story.record.state is JobState.FAILED
    assert story.record.starts[-1].exit_code == 1, story.stderr
    assert "torchrun of node 1 on c2 ended with exit code 1, and so did the others" in story.stderr
    assert "exitcode  : 7" in story.stderr


def test_spark_works_on_both_nodes(alice: SiteClient, cluster: Cluster, scripts: str) -> None:
    plan = SparkPlan(argv=(PYTHON, f"{scripts}/spark_hosts.py"), python=PYTHON)
    options = JobOptions(nodes=2, cpus_per_task=2, mem_per_node_mib=3500)
    story = run(alice, cluster, plan, options=options)
    assert story.record.state is JobState.COMPLETED, story.stderr
    assert "counted 1000 on ['c1', 'c2']" in story.stdout
