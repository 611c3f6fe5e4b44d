"""What the next attempt asks for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dagster_slurmbus import ComputeResource, MoreMemory, MoreTime
from dagster_slurmbus.again import Ladder, Policy, changes
from dagster_slurmbus.metrics import allocated_gpus, allocated_memory, gpus_asked_for
from slurmbus_protocol.messages import Accounting, JobOptions, Record, Start, Usage
from slurmbus_protocol.states import JobState

GIB = 1024**3


def record(state: JobState = JobState.OUT_OF_MEMORY, *, tres: str = "", elapsed: float = 61.0, **fields: Any) -> Record:
    accounting = Accounting(
        state=state.value, exit_code=0, signal=0, elapsed=elapsed, cpu_seconds=1.0, alloc_cpus=4, alloc_tres=tres
    )
    usage = Usage(cpu_seconds=1.0, max_rss=1, elapsed=elapsed)
    base: dict[str, Any] = {
        "key": "01JD0000000000000000000000",
        "site": "a",
        "epoch": 1,
        "name": "x",
        "submitter": "me",
        "created_at": 1.0,
        "updated_at": 1.0,
        "nodes": 1,
        "alloc_cpus": 4,
        "starts": (Start(number=0, job_id=1, node="c1", nonce="n", usage=usage),),
        "accounting": accounting,
    }
    return Record(state=state, **base | fields)


@pytest.mark.parametrize(
    ("options", "more", "expected"),
    [
        (JobOptions(mem_per_node_mib=1000), MoreMemory(), JobOptions(mem_per_node_mib=2000)),
        (JobOptions(mem_per_node_mib=1000), MoreMemory(factor=1.5), JobOptions(mem_per_node_mib=1500)),
        (JobOptions(mem_per_node_mib=1000), MoreMemory(limit="1500M"), JobOptions(mem_per_node_mib=1500)),
        (JobOptions(mem_per_node_mib=1000), MoreMemory(limit="1000M"), None),
        (JobOptions(mem_per_cpu_mib=1000), MoreMemory(), JobOptions(mem_per_cpu_mib=2000)),
        (JobOptions(mem_per_cpu_mib=1000), MoreMemory(limit="6000M"), JobOptions(mem_per_cpu_mib=1500)),
        (
            JobOptions(mem_per_gpu_mib=1000, gpus_per_node="2"),
            MoreMemory(limit="3000M"),
            JobOptions(mem_per_gpu_mib=1500, gpus_per_node="2"),
        ),
        (JobOptions(all_memory=True), MoreMemory(), None),
        (JobOptions(), MoreMemory(), JobOptions(mem_per_node_mib=8192)),
    ],
)
def test_more_memory(options: JobOptions, more: MoreMemory, expected: JobOptions | None) -> None:
    tres = "cpu=4,mem=4G,node=1" + (",gres/gpu=2" if options.gpus_per_node else "")
    assert more.more(record(options=options, tres=tres)) == expected


def test_of_several_nodes_each_gets_more() -> None:
    assert MoreMemory().more(record(nodes=2, tres="mem=8G")) == JobOptions(mem_per_node_mib=8192)


def test_without_a_word_on_its_memory_there_is_nothing_to_start_from() -> None:
    assert MoreMemory().more(record(accounting=None)) is None


@pytest.mark.parametrize(
    ("options", "more", "expected"),
    [
        (JobOptions(time_limit_minutes=10), MoreTime(), 20),
        (JobOptions(time_limit_minutes=10), MoreTime(factor=1.25), 13),
        (JobOptions(time_limit_minutes=10), MoreTime(limit="0:15:00"), 15),
        (JobOptions(time_limit_minutes=10), MoreTime(limit=10), None),
        (JobOptions(), MoreTime(), 4),  # it ran for 61 s, so its limit was a minute or two
    ],
)
def test_more_time(options: JobOptions, more: MoreTime, expected: int | None) -> None:
    found = more.more(record(JobState.TIMEOUT, options=options))
    assert (found and found.time_limit_minutes) == expected


@pytest.mark.parametrize("limit", ["much", "-1G", ""])
def test_a_limit_that_cant_be_read_is_refused(limit: str) -> None:
    with pytest.raises(ValidationError, match="limit"):
        MoreMemory(limit=limit)
    with pytest.raises(ValidationError, match="limit"):
        MoreTime(limit=limit)


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"factor": 0.5}, {"attempts": 0}, {"faktor": 2}])
def test_what_would_ask_for_no_more_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MoreMemory(**wrong)


def test_the_attempts_of_each_kind_are_counted() -> None:
    policy = Policy(on_out_of_memory=MoreMemory(attempts=1), on_timeout=MoreTime(attempts=1))
    options = JobOptions(mem_per_node_mib=1, time_limit_minutes=1)
    ladder = Ladder(policy)
    assert ladder.more(record(options=options)) is not None
    ladder.climb({"state": "OUT_OF_MEMORY"})
    assert ladder.more(record(options=options)) is None
    assert ladder.more(record(JobState.TIMEOUT, options=options)) is not None
    assert ladder.more(record(JobState.FAILED, options=options)) is None
    assert Ladder(policy, ladder.before).number == 1


def test_changes_are_told() -> None:
    old = JobOptions(mem_per_cpu_mib=100, time_limit_minutes=90)
    new = JobOptions(mem_per_cpu_mib=200, time_limit_minutes=2880)
    assert changes(old, new) == "mem_per_cpu=200M instead of 100M and time_limit=2-00:00:00 instead of 01:30:00"
    assert changes(JobOptions(), JobOptions(mem_per_node_mib=5)) == "mem=5M"


def test_a_resource_takes_both() -> None:
    compute = ComputeResource(on_out_of_memory=MoreMemory(limit="64G"), on_timeout=MoreTime(attempts=5))
    assert compute.on_out_of_memory is not None
    assert compute.on_out_of_memory.limit == "64G"
    assert compute.on_timeout is not None
    assert compute.on_timeout.attempts == 5


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 0),
        ({"gpus_per_node": "2"}, 4),
        ({"gpus_per_node": "a100:2"}, 4),
        ({"gpus": "a100:3"}, 3),
        ({"gres": "gpu:2,shard:1"}, 4),
        ({"gres": "gpu:a100:1"}, 2),
        ({"gres": "gpu"}, 2),
        ({"gres": "shard:4"}, 0),
    ],
)
def test_gpus_that_were_asked_for(options: dict[str, Any], gpus: int) -> None:
    assert gpus_asked_for(record(nodes=2, options=JobOptions(**options))) == gpus


def test_what_accounting_says_was_allocated_counts() -> None:
    found = record(nodes=2, tres="billing=8,cpu=8,gres/gpu:a100=2,mem=1.5G,node=2", options=JobOptions(gpus="9"))
    assert (allocated_gpus(found), allocated_memory(found)) == (2, GIB * 3 // 2)
