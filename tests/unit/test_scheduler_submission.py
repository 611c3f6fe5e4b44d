"""What pyslurm is told of a job, what a refusal is explained with, and which scheduler is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurmbus_agent.scheduler.base import BatchJob, Unavailable
from slurmbus_agent.scheduler.factory import make_scheduler
from slurmbus_agent.scheduler.hints import Node, hint_for, hint_for_unknown
from slurmbus_agent.scheduler.local import LocalScheduler
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_agent.scheduler.submission import description
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import JobOptions, Partition

PARTITIONS = [
    Partition(name="main", state="UP", nodes=2, cpus=16, default=True),
    Partition(name="gpu", state="UP", nodes=1, cpus=64),
]
NODES = [Node(("main",), 8, 4000), Node(("main",), 8, 8000), Node(("gpu",), 64, 512_000)]


def described(comment: str = "", **options: object) -> dict[str, object]:
    job = BatchJob(
        name="job",
        script="#!/bin/sh\n",
        work_dir="/data",
        output="/data/50%.out",
        environment={"A": "1"},
        options=JobOptions(**options),  # type: ignore[arg-type]
        comment=comment,
    )
    return description(job)


def test_what_is_not_asked_for_is_left_to_slurm() -> None:
    told = described()
    assert set(told) == {
        *("name", "script", "working_directory", "standard_output", "log_files_open_mode", "environment"),
        *("is_requeueable", "ntasks", "nodes", "use_min_nodes", "profile_types"),
    }
    assert told["is_requeueable"] is False
    assert told["log_files_open_mode"] == "append"
    assert told["standard_output"] == "/data/50%%.out"


@pytest.mark.parametrize(
    ("options", "tasks", "nodes"),
    [
        ({}, 1, (1, 1)),
        ({"ntasks": 12}, 12, (1, 12)),
        ({"nodes": 3}, 3, (3, 3)),
        ({"nodes": 3, "ntasks_per_node": 4}, 12, (3, 3)),
        ({"nodes": 2, "ntasks": 7}, 7, (2, 2)),
        ({"ntasks_per_node": 4}, 4, (1, 1)),
        ({"ntasks": 7, "ntasks_per_node": 2}, 7, (4, 4)),
        ({"nodes": 2, "nodes_max": 4}, 2, (2, 4)),
        ({"nodes_max": 4}, 1, (1, 4)),
    ],
)
def test_tasks_and_nodes_as_sbatch_counts_them(options: dict[str, int], tasks: int, nodes: tuple[int, int]) -> None:
    told = described(**options)
    assert told["ntasks"] == tasks
    assert told["nodes"] == {"min": nodes[0], "max": nodes[1]}
    assert told["environment"]["SLURM_NTASKS"] == str(tasks)  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "gres"),
    [
        ({"gpus_per_node": "2"}, "gpu:2"),
        ({"gpus_per_node": "a100"}, "gpu:a100:1"),
        ({"gpus_per_node": "a100:4", "gres": "shard,nvme:2"}, "gpu:a100:4,shard:1,nvme:2"),
    ],
)
def test_generic_resources(options: dict[str, str], gres: str) -> None:
    assert described(**options)["gres_per_node"] == gres


def test_options() -> None:
    told = described(
        partition="main,gpu",
        time_limit_minutes=90,
        mem_per_node_mib=512,
        exclude="c[1-2]",
        exclusive=True,
        requeue=True,
    )
    assert told["partitions"] == ["main,gpu"]
    assert told["time_limit"] == 90
    assert told["memory_per_node"] == 512
    assert told["excluded_nodes"] == ["c[1-2]"]
    assert told["resource_sharing"] == "exclusive"
    assert told["is_requeueable"] is True
    assert described(comment="mine")["comment"] == "mine"


@pytest.mark.parametrize(
    ("errno", "options", "hint"),
    [
        (2000, {"partition": "nope"}, "partitions here: main (default), gpu"),
        (2014, {}, "partition main has 2 nodes with at most 8 CPUs and 8000 MiB each"),
        (2014, {"partition": "gpu"}, "partition gpu has 1 nodes with at most 64 CPUs and 512000 MiB each"),
        (2014, {"partition": "a,b"}, "sinfo"),
        (2045, {}, "sacctmgr"),
        (2038, {}, "afterok"),
        (2123, {}, "negative nice"),
        (2090, {}, ""),
    ],
)
def test_hints(errno: int, options: dict[str, str], hint: str) -> None:
    given = hint_for(errno, JobOptions(**options), lambda: (PARTITIONS, NODES))  # type: ignore[arg-type]
    assert given.startswith(hint) or hint in given
    assert bool(given) == bool(hint)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("/usr/bin/sbatch: unrecognized option '--tres-per-task=cpu=2'\nTry", "no --tres-per-task, it may be too old"),
        ("sbatch: unrecognized option '--tres-per-task=cpu=2'", "leave tres_per_task out"),
        ("sbatch: unrecognized option '--extra'", "leave node_extra out"),
        ("sbatch: unrecognized option '--new-one=x'", "leave extra['new-one'] out"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", ""),
    ],
)
def test_an_option_that_slurm_doesnt_have_is_named_as_people_write_it(said: str, hint: str) -> None:
    given = hint_for_unknown(said)
    assert hint in given
    assert bool(given) == bool(hint)


def test_a_hint_that_cannot_be_looked_up_is_a_smaller_one() -> None:
    def ask() -> tuple[list[Partition], list[Node]]:
        raise Unavailable

    assert "sinfo" in hint_for(2000, JobOptions(), ask)


def test_schedulers_by_name(tmp_path: Path) -> None:
    assert isinstance(make_scheduler("local", folder=tmp_path), LocalScheduler)
    assert isinstance(make_scheduler("native", folder=tmp_path), ChildScheduler)
    assert make_scheduler("commands", folder=tmp_path).health.kind == "commands"
    with pytest.raises(InvalidSetting, match="native, commands, local, auto"):
        make_scheduler("pbs", folder=tmp_path)
