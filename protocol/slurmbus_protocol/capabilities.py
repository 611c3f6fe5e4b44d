"""What a request needs of an agent that the first agents couldn't do.

An older agent overlooks what it doesn't know. So each addition to a request has a token here, agents announce theirs in
the heartbeat, and the client refuses what the site's agent can't do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from slurmbus_protocol.errors import AgentTooOld
from slurmbus_protocol.messages import Heartbeat, JobOptions, JobSpec
from slurmbus_protocol.plans import MpiPlan, RayPlan, SparkPlan, TorchrunPlan

OPTIONS_2 = "options-2"
LAUNCH_RAY = "launch-ray"
ENVIRONMENTS = "environments"
LAUNCH_MPI = "launch-mpi"
LAUNCH_TORCHRUN = "launch-torchrun"
LAUNCH_SPARK = "launch-spark"
ARRAYS = "arrays"
SEALED = "sealed"
WORK_WORD = "work-word"
REQUEUE = "requeue"

FIRST_OPTIONS = frozenset(
    {
        "partition",
        "account",
        "qos",
        "reservation",
        "constraint",
        "time_limit_minutes",
        "nodes",
        "ntasks",
        "ntasks_per_node",
        "cpus_per_task",
        "mem_per_node_mib",
        "mem_per_cpu_mib",
        "gpus_per_node",
        "gres",
        "nodelist",
        "exclude",
        "exclusive",
        "requeue",
        "comment",
    }
)
"""The options that every agent knows."""


class Addition(NamedTuple):
    """Something that requests can ask for since a later version."""

    words: str
    """For people."""
    used_by: Callable[[JobSpec], bool]


def newer_options(options: JobOptions) -> list[str]:
    """Name the options that are set and that the first agents would overlook."""
    unset = JobOptions()
    return [
        name
        for name in JobOptions.__struct_fields__
        if name not in FIRST_OPTIONS and getattr(options, name) != getattr(unset, name)
    ]


ADDITIONS: dict[str, Addition] = {
    LAUNCH_RAY: Addition("Ray clusters", lambda job: isinstance(job.plan, RayPlan)),
    LAUNCH_MPI: Addition("MPI programs", lambda job: isinstance(job.plan, MpiPlan)),
    LAUNCH_TORCHRUN: Addition("torchrun", lambda job: isinstance(job.plan, TorchrunPlan)),
    LAUNCH_SPARK: Addition("Spark clusters", lambda job: isinstance(job.plan, SparkPlan)),
    OPTIONS_2: Addition("all of Slurm's options", lambda job: bool(newer_options(job.options))),
    ENVIRONMENTS: Addition("environments", lambda job: job.environment is not None),
    ARRAYS: Addition("job arrays", lambda job: bool(job.tasks)),
    WORK_WORD: Addition("payloads that run in another folder", lambda job: job.work_word is not None),
    SEALED: Addition("secret environment values", lambda job: job.sealed is not None),
}
"""By token."""


def needed(job: JobSpec) -> set[str]:
    """Name the capabilities that an agent needs for this job; empty for what every agent can do."""
    return {token for token, addition in ADDITIONS.items() if addition.used_by(job)}


def check(job: JobSpec, agent: Heartbeat) -> None:
    """Compare what a job needs with what an agent can do.

    Raises:
        AgentTooOld: the agent would overlook a part of the request.
    """
    missing = sorted(needed(job).difference(agent.capabilities))
    if not missing:
        return
    words = "; ".join(f"{token!r} ({_words(token, job)})" for token in missing)
    raise AgentTooOld(f"the agent of site {agent.site} (version {agent.version} on {agent.host}) doesn't know {words}")


def check_requeue(agent: Heartbeat) -> None:
    """Make sure that an agent knows the control Requeue; one that doesn't would take it for a bad message.

    Raises:
        AgentTooOld: it doesn't.
    """
    if REQUEUE not in agent.capabilities:
        raise AgentTooOld(
            f"the agent of site {agent.site} (version {agent.version} on {agent.host}) doesn't know {REQUEUE!r} "
            "(sending a running job back to the queue)"
        )


def _words(token: str, job: JobSpec) -> str:
    if token == OPTIONS_2:
        return f"the options {', '.join(newer_options(job.options))}"
    return ADDITIONS[token].words
