"""What Slurm gave the job, read from its environment. Source: sbatch(1), "OUTPUT ENVIRONMENT VARIABLES"."""

from __future__ import annotations

import os
import re

from slurmbus_agent.runner.launch_errors import LaunchFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1024 * 1024
_REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


class Node:
    """One node of the job."""

    def __init__(self, name: str, cpus: int, tasks: int, memory: int | None) -> None:
        self.name = name
        self.cpus = cpus
        self.tasks = tasks
        self.memory = memory
        """Bytes; None when Slurm set no limit."""


class Allocation:
    """The nodes of a job; ``here`` is the one on which the payload runs."""

    def __init__(self, job_id: str, nodes: list[Node], here: Node, cpus_per_task: int | None, *, local: bool) -> None:
        self.job_id = job_id
        self.nodes = nodes
        self.here = here
        self.cpus_per_task = cpus_per_task
        self.local = local
        """True for a job without Slurm: there is one node and no srun."""

    @property
    def others(self) -> list[Node]:
        """Every node but this one."""
        return [node for node in self.nodes if node is not self.here]

    @property
    def tasks(self) -> int:
        """The job's tasks on all nodes."""
        return sum(node.tasks for node in self.nodes)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Allocation:
        """Read Slurm's variables; LaunchFailed when they don't fit together."""
        local = env.get("SLURMBUS_SCHEDULER") == "local"
        own = env.get("SLURMD_NODENAME") or os.uname().nodename
        try:
            names = hosts(env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or own)
            cpus = _spread(env.get("SLURM_JOB_CPUS_PER_NODE") or str(_own_cpus()), len(names))
            per_task = _number(env, "SLURM_CPUS_PER_TASK")
            tasks = _spread(_tasks(env, local=local), len(names))
            memory = [_memory(env, count) for count in cpus]
        except ValueError as error:
            raise LaunchFailed(f"Slurm's variables can't be read: {error}") from error
        if local:
            cpus = [max(_own_cpus(), 1)]
        nodes = [Node(*values) for values in zip(names, cpus, tasks, memory)]  # noqa: B905 - since Python 3.10
        here = next((node for node in nodes if node.name == own), nodes[0])
        return cls(env.get("SLURM_JOB_ID", "0"), nodes, here, per_task, local=local)


def hosts(text: str) -> list[str]:
    """Expand Slurm's list of hosts, ``c[1-2,05-07],login`` for example. Source: scontrol(1), "show hostnames"."""
    names: list[str] = []
    for word in _words(text):
        names.extend(_expanded(word))
    if not names:
        raise ValueError(f"no host in {text!r}")
    return names


def _words(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    words, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            words.append(text[begin:place])
            begin = place + 1
    if depth:
        raise ValueError(f"a bracket isn't closed in {text!r}")
    return [word for word in [*words, text[begin:]] if word]


def _expanded(word: str) -> list[str]:
    before, bracket, rest = word.partition("[")
    if not bracket:
        return [word]
    inside, _, after = rest.partition("]")
    tails = _expanded(after)
    return [before + number + tail for part in inside.split(",") for number in _numbers(part) for tail in tails]


def _numbers(part: str) -> list[str]:
    low, dash, high = part.partition("-")
    if not dash:
        return [low]
    return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]


def _spread(text: str, count: int) -> list[int]:
    """Read counts per node, ``8(x2),4`` for example; the last one holds for nodes beyond."""
    values: list[int] = []
    for part in text.split(","):
        found = _REPEATED.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{text!r} isn't a list of counts")
        values += [int(found[1])] * int(found[2] or 1)
    return (values + [values[-1]] * count)[:count]


def _tasks(env: Mapping[str, str], *, local: bool) -> str:
    """Give the tasks per node. A job without Slurm has only their sum: with more, MPICH's mpirun looks for srun."""
    per_node = env.get("SLURM_TASKS_PER_NODE") or env.get("SLURM_NTASKS_PER_NODE")
    return per_node or (local and env.get("SLURM_NTASKS")) or "1"


def _number(env: Mapping[str, str], name: str) -> int | None:
    return int(env[name]) if env.get(name, "").isdigit() else None


def _memory(env: Mapping[str, str], cpus: int) -> int | None:
    per_node, per_cpu = _number(env, "SLURM_MEM_PER_NODE"), _number(env, "SLURM_MEM_PER_CPU")
    if per_node:
        return per_node * MIB
    return per_cpu * cpus * MIB if per_cpu else None


def _own_cpus() -> int:
    return len(os.sched_getaffinity(0))
