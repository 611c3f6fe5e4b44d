"""What a person should do next when Slurm refuses a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from slurmbus_agent.scheduler.base import SchedulerError
from slurmbus_protocol.messages import JobOptions, Partition

# slurm_errno.h
_PARTITION = frozenset({2000, 2001})  # INVALID_PARTITION_NAME, DEFAULT_PARTITION_NOT_SET
_SIZE = frozenset(
    {
        2005,  # TOO_MANY_REQUESTED_CPUS
        2006,  # INVALID_NODE_COUNT
        2014,  # REQUESTED_NODE_CONFIG_UNAVAILABLE
        2015,  # REQUESTED_PART_CONFIG_UNAVAILABLE
        2025,  # BAD_TASK_COUNT
        2044,  # INVALID_TASK_MEMORY
        2069,  # INVALID_CPU_COUNT
        2134,  # INSUFFICIENT_GRES
    }
)
_FIXED = {
    2018: "see the nodes' names with: sinfo --Node",  # INVALID_NODE_NAME
    2029: "see the nodes' features with: sinfo -o '%P %f'",  # INVALID_FEATURE
    2045: "see your accounts with: sacctmgr show assoc user=$USER format=account,partition,qos",  # INVALID_ACCOUNT
    2050: "see your limits with: sacctmgr show assoc user=$USER, or submit fewer jobs at once",  # ACCOUNTING_POLICY
    2051: "see the partitions' limits with: sinfo -o '%P %l'",  # INVALID_TIME_LIMIT
    2052: "see the reservations with: scontrol show reservation",  # RESERVATION_ACCESS
    2053: "see the reservations with: scontrol show reservation",  # RESERVATION_INVALID
    2066: "see your QOS with: sacctmgr show assoc user=$USER format=account,qos",  # INVALID_QOS
    2072: "see the nodes' generic resources with: sinfo -o '%P %G'",  # INVALID_GRES
    2119: "see the nodes' generic resources with: sinfo -o '%P %G'",  # INVALID_GRES_TYPE
}


class Node(NamedTuple):
    """A node, as far as asking for one needs it."""

    partitions: tuple[str, ...]
    cpus: int
    memory_mib: int


def hint_for(errno: int, options: JobOptions, ask: Callable[[], tuple[list[Partition], list[Node]]]) -> str:
    """Give the hint for Slurm's error number; ``ask`` is called when it takes a look at the site."""
    if errno in _FIXED:
        return _FIXED[errno]
    if errno not in _PARTITION | _SIZE:
        return ""
    try:
        partitions, nodes = ask()
    except SchedulerError:
        return "see the partitions with: sinfo"
    if errno in _PARTITION:
        return f"partitions here: {', '.join(_shown(partition) for partition in partitions)}"
    return _size_of(options.partition, partitions, nodes)


def _shown(partition: Partition) -> str:
    return f"{partition.name} (default)" if partition.default else partition.name


def _size_of(asked: str | None, partitions: list[Partition], nodes: list[Node]) -> str:
    chosen = [partition for partition in partitions if (partition.name == asked if asked else partition.default)]
    if not chosen:
        return "see what the nodes have with: sinfo -o '%P %D %c %m %G'"
    partition = chosen[0]
    members = [node for node in nodes if partition.name in node.partitions]
    cpus = max((node.cpus for node in members), default=0)
    memory = max((node.memory_mib for node in members), default=0)
    return (
        f"partition {partition.name} has {partition.nodes} nodes with at most {cpus} CPUs and {memory} MiB each;"
        " see what they have with: sinfo -o '%P %D %c %m %G'"
    )
