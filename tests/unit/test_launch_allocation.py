"""What Slurm's variables say of a job's nodes."""

from __future__ import annotations

import os

import pytest

from slurmbus_agent.runner import launch_steps
from slurmbus_agent.runner.launch_allocation import MIB, Allocation, hosts
from slurmbus_agent.runner.launch_errors import LaunchFailed


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("login", ["login"]),
        ("c1,c2", ["c1", "c2"]),
        ("c[1-2]", ["c1", "c2"]),
        ("c[1-2,05-07,9],gpu[0]", ["c1", "c2", "c05", "c06", "c07", "c9", "gpu0"]),
        ("r[1-2]n[08-10]-ib", ["r1n08-ib", "r1n09-ib", "r1n10-ib", "r2n08-ib", "r2n09-ib", "r2n10-ib"]),
        ("n[099-101]", ["n099", "n100", "n101"]),
    ],
)
def test_lists_of_hosts(text: str, names: list[str]) -> None:
    assert hosts(text) == names


@pytest.mark.parametrize("text", ["", "c[1-2", "c[a-b]"])
def test_what_is_no_list_of_hosts(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        hosts(text)


def test_an_allocation_of_unequal_nodes() -> None:
    found = Allocation.from_environment(
        {
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "c[1-3]",
            "SLURM_JOB_CPUS_PER_NODE": "8(x2),4",
            "SLURM_TASKS_PER_NODE": "2(x2),1",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_MEM_PER_CPU": "500",
            "SLURMD_NODENAME": "c2",
        }
    )
    assert [(node.name, node.cpus, node.tasks, node.memory) for node in found.nodes] == [
        ("c1", 8, 2, 4000 * MIB),
        ("c2", 8, 2, 4000 * MIB),
        ("c3", 4, 1, 2000 * MIB),
    ]
    assert (found.here.name, [node.name for node in found.others]) == ("c2", ["c1", "c3"])
    assert (found.tasks, found.cpus_per_task, found.job_id, found.local) == (5, 4, "7", False)


def test_a_job_without_slurm_has_this_machine() -> None:
    found = Allocation.from_environment(
        {"SLURMBUS_SCHEDULER": "local", "SLURM_JOB_NODELIST": "laptop", "SLURMD_NODENAME": "laptop"}
    )
    assert [(node.name, node.cpus, node.memory) for node in found.nodes] == [
        ("laptop", len(os.sched_getaffinity(0)), None)
    ]
    assert found.local


@pytest.mark.parametrize(("scheduler", "tasks"), [("local", 4), ("native", 1)])
def test_a_sum_of_tasks_is_that_of_the_only_node_without_slurm(scheduler: str, tasks: int) -> None:
    found = Allocation.from_environment({"SLURMBUS_SCHEDULER": scheduler, "SLURM_NTASKS": "4"})
    assert [node.tasks for node in found.nodes] == [tasks]


def test_memory_for_the_whole_node() -> None:
    [node] = Allocation.from_environment({"SLURM_JOB_NODELIST": "c1", "SLURM_MEM_PER_NODE": "1500"}).nodes
    assert node.memory == 1500 * MIB


def test_variables_that_cant_be_read_are_told() -> None:
    with pytest.raises(LaunchFailed, match="Slurm's variables can't be read: '8x' isn't a list of counts"):
        Allocation.from_environment({"SLURM_JOB_NODELIST": "c1", "SLURM_JOB_CPUS_PER_NODE": "8x"})


def test_a_step_isnt_bent_by_what_was_meant_for_the_job() -> None:
    env = {
        "PATH": "/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_MEM_PER_CPU": "500",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_TRES_PER_TASK": "cpu=4",
        "SLURM_JOB_NODELIST": "c[1-2]",
    }
    assert launch_steps.environment(env) == {"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "c[1-2]"}


def allocated(**env: str) -> tuple[Allocation, dict[str, str]]:
    """Give an allocation of three nodes, seen from the first one, and its environment."""
    whole = {"SLURM_JOB_NODELIST": "c[1-3]", "SLURMD_NODENAME": "c1", "SLURM_TASKS_PER_NODE": "2(x3)", **env}
    return Allocation.from_environment(whole), whole


@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({}, None),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_NODE": "2"}, None),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_TASK": "2"}, 4),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_TRES_PER_TASK": "cpu=2,gres/gpu=2"}, 4),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_TRES_PER_TASK": "cpu:2,gres:gpu:2"}, 4),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_TASK": "a100:1", "SLURM_TASKS_PER_NODE": "2(x2),1"}, 1),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS": "6"}, 2),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS": "a100:4,h100:2"}, 2),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS": "4"}, 1),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_TRES_PER_TASK": "cpu=2"}, None),
    ],
)
def test_a_step_asks_for_the_gpus_that_it_would_not_get(env: dict[str, str], gpus: int | None) -> None:
    allocation, whole = allocated(**env)
    words = launch_steps.one_on_each(allocation, allocation.nodes, whole, ["true"])
    assert [word for word in words if word.startswith("--gpus")] == ([f"--gpus-per-node={gpus}"] if gpus else [])


def test_a_step_of_some_nodes_asks_for_what_these_have() -> None:
    env = {"SLURM_GPUS_ON_NODE": "1", "SLURM_GPUS_PER_TASK": "1", "SLURM_TASKS_PER_NODE": "1,2(x2)"}
    allocation, whole = allocated(**env)
    words = launch_steps.one_on_each(allocation, allocation.others, whole, ["true"])
    assert {"--nodes=2", "--ntasks=2", "--nodelist=c2,c3", "--gpus-per-node=2"} <= set(words)
