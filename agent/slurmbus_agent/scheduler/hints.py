"""What a person should do next when Slurm refuses a job."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from slurmbus_agent.scheduler.base import SchedulerError
from slurmbus_protocol.messages import JobOptions, Partition
from slurmbus_protocol.options import OPTIONS

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
_RESERVATIONS = "see the reservations with: scontrol show reservation"
_FEATURES = "see the nodes' features with: sinfo -o '%P %f'"
_GRES = "see the nodes' generic resources with: sinfo -o '%P %G'"
_OPERATORS = "only Slurm's operators may do that: leave it out, or ask the site"
_ARRAY = (
    "set array_size in the agent's SITE.settings.toml to less than MaxArraySize: "
    "scontrol show config | grep MaxArraySize"
)
_FIXED = {
    2002: "only the site's administrators may ask for that: leave it out, or ask them",  # ACCESS_DENIED
    2003: "see who may use the partition with: scontrol show partition (AllowGroups, AllowAccounts)",
    2004: "the nodes of nodelist must be in the partition; see them with: sinfo --Node",
    2018: "see the nodes' names with: sinfo --Node",  # INVALID_NODE_NAME
    2023: "distribution is written as in sbatch(1): block, cyclic, plane=4, block:cyclic",  # BAD_DIST
    2029: _FEATURES,  # INVALID_FEATURE
    2036: "the site doesn't support what was asked for: leave the option out",  # NOT_SUPPORTED
    2037: "the site has switched that off: leave the option out",  # DISABLED
    # DEPENDENCY
    2038: "name jobs that Slurm still knows (for MinJobAge after their end): afterok:1234; see them with: squeue",
    2040: "see the licences with: scontrol show licenses",  # LICENSES_UNAVAILABLE
    2045: "see your accounts with: sacctmgr show assoc user=$USER format=account,partition,qos",  # INVALID_ACCOUNT
    2048: "see the licences with: scontrol show licenses",  # INVALID_LICENSES
    2050: "see your limits with: sacctmgr show assoc user=$USER, or submit fewer jobs at once",  # ACCOUNTING_POLICY
    2051: "see the partitions' limits with: sinfo -o '%P %l'",  # INVALID_TIME_LIMIT
    2052: _RESERVATIONS,  # RESERVATION_ACCESS
    2053: _RESERVATIONS,  # RESERVATION_INVALID
    2054: "begin and deadline are by the site's clock; a deadline must leave time for the job",  # INVALID_TIME_VALUE
    2056: _RESERVATIONS,  # RESERVATION_NOT_USABLE
    2057: "see your keys with: sacctmgr show user $USER withassoc format=user,wckeys",  # INVALID_WCKEY
    2066: "see your QOS with: sacctmgr show assoc user=$USER format=account,qos",  # INVALID_QOS
    2071: "the job would wait for itself: take it out of dependency",  # CIRCULAR_DEPENDENCY
    2072: _GRES,  # INVALID_GRES
    2081: _ARRAY,  # INVALID_ARRAY
    2092: "the site doesn't let you use its burst buffers",  # BURST_BUFFER_PERMISSION
    2093: "ask for less: the burst buffers have a limit",  # BURST_BUFFER_LIMIT
    2094: "bb is written as the site's documentation says; there may be no burst buffers at all",
    2099: "see the site's MCSPlugin with: scontrol show config",  # INVALID_MCS_LABEL
    2102: "name each generic resource once: gpus_per_node or gres, not both",  # DUPLICATE_GRES
    2114: "the features of batch must be among those of constraint",  # BATCH_CONSTRAINT
    2115: "see the site's trackable resources with: sacctmgr show tres",  # INVALID_TRES
    2119: _GRES,  # INVALID_GRES_TYPE
    2122: _GRES,  # UNSUPPORTED_GRES
    2123: f"a negative nice raises the priority; {_OPERATORS}",  # INVALID_NICE
    2124: "time_min must not be longer than time_limit",  # INVALID_TIME_MIN_LIMIT
    2132: "see the nodes' threads with: sinfo -o '%P %z'",  # BAD_THREAD_PER_CORE
    2133: _FEATURES,  # INVALID_PREFER
    2171: "see the nodes' Extra field with: scontrol show node",  # INVALID_EXTRA
    2178: "see the topology with: scontrol show topology",  # REQUESTED_TOPO_CONFIG_UNAVAILABLE
}

_UNKNOWN_OPTION = re.compile(r"unrecognized option '--(?P<flag>[a-z][a-z-]*)")
"""The words of getopt(3)."""


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


def hint_for_unknown(said: str) -> str:
    """Give the hint for an option that the site's Slurm doesn't have, by what sbatch says of it; else nothing."""
    found = _UNKNOWN_OPTION.search(said)
    if found is None:
        return ""
    flag = found["flag"]
    name = next((option.name for option in OPTIONS if option.flag == flag), f"extra[{flag!r}]")
    return f"the site's Slurm has no --{flag}, it may be too old or too new for that: leave {name} out"


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
