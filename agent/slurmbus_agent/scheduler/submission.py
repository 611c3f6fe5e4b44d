"""A batch job in the words of pyslurm's JobSubmitDescription.

pyslurm expresses the common options as sbatch does. Others it doesn't know, or means something else by them, or leaves
out what sbatch adds to the job's environment for them: for those ``beyond`` says so, and sbatch itself submits the job.
"""

from __future__ import annotations

import socket
from typing import Any

from slurmbus_agent.scheduler.array import ARRAY_TASK, expression
from slurmbus_agent.scheduler.base import BatchJob
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.options import OPTIONS

_FOR_MPIRUN = {
    "OMPI_MCA_plm_slurm_args": "--external-launcher",
    "PRTE_MCA_plm_slurm_args": "--external-launcher",
    "HYDRA_BOOTSTRAP": "slurm",
    "HYDRA_LAUNCHER_EXTRA_ARGS": "--external-launcher",
    "I_MPI_HYDRA_BOOTSTRAP": "slurm",
    "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS": "--external-launcher",
}
"""With these an ``mpirun`` starts its own helpers as sbatch means it to, without taking the job's CPUs for them."""


def beyond(options: JobOptions) -> list[str]:
    """Name the options of a job that pyslurm can't express."""
    unset = JobOptions()
    names = [
        option.name
        for option in OPTIONS
        if not option.native and getattr(options, option.wire) != getattr(unset, option.wire)
    ]
    if options.unlimited_time:
        names.append("time_limit=UNLIMITED")
    if options.all_memory:
        names.append("mem=0")
    # pyslurm takes digits for seconds since 1970, Slurm for a date.
    names += [name for name in ("begin", "deadline") if (getattr(options, name) or "").isdigit()]
    return [*names, *options.extra]


def description(job: BatchJob) -> dict[str, Any]:
    """Give the arguments of pyslurm's JobSubmitDescription."""
    options = job.options
    tasks = options.ntasks or (options.nodes or 1) * (options.ntasks_per_node or 1)
    least, most = _nodes(options, tasks)
    given = {
        "account": options.account,
        "qos": options.qos,
        "constraints": options.constraint,
        "time_limit": options.time_limit_minutes,
        "time_limit_min": options.time_min_minutes,
        "begin_time": options.begin,
        "deadline": options.deadline,
        "dependencies": options.dependency,
        "priority": 0 if options.hold else None,
        "nice": options.nice,
        "wckey": options.wckey,
        "licenses": _names(options.licenses),
        "ntasks_per_node": options.ntasks_per_node,
        "cpus_per_task": options.cpus_per_task,
        "memory_per_node": options.mem_per_node_mib,
        "memory_per_cpu": options.mem_per_cpu_mib,
        "gres_per_node": _gres(options),
        "partitions": _names(options.partition),
        "reservations": _names(options.reservation),
        "required_nodes": _names(options.nodelist),
        "excluded_nodes": _names(options.exclude),
        "comment": job.comment or None,
        "resource_sharing": "exclusive" if options.exclusive else None,
    }
    fixed = {
        "name": job.name,
        "script": job.script,
        "working_directory": job.work_dir,
        # A path, not one of Slurm's file name patterns. Standard error goes there too when it isn't named.
        "standard_output": job.output.replace("%", "%%").replace(ARRAY_TASK, "%a"),
        # A requeued job shall not wipe out what its first start said.
        "log_files_open_mode": "append",
        "environment": _environment(job, tasks),
        # Without this pyslurm asks for every kind of profiling there is. An empty list it takes for nothing said.
        "profile_types": iter(()),
        "is_requeueable": options.requeue,
        "ntasks": tasks,
        "nodes": {"min": least, "max": most},
        "use_min_nodes": options.nodes is None and options.nodes_max is None,
    }
    return {name: value for name, value in given.items() if value is not None} | fixed | _array(job)


def _array(job: BatchJob) -> dict[str, Any]:
    if not job.array:
        return {}
    throttle = f"%{job.array_throttle}" if job.array_throttle else ""
    return {"array": f"{expression(job.array)}{throttle}"}


def _nodes(options: JobOptions, tasks: int) -> tuple[int, int]:
    """Give the fewest and the most nodes. Without them pyslurm insists on one; source: sbatch(1), ``--nodes``."""
    if options.nodes is not None or options.nodes_max is not None:
        return options.nodes or 1, options.nodes_max or options.nodes or 1
    if options.ntasks_per_node is not None:
        count = -(-tasks // options.ntasks_per_node)
        return count, count
    return 1, tasks


def _environment(job: BatchJob, tasks: int) -> dict[str, str]:
    """Add what sbatch itself adds to a job's environment; slurmd adds the rest. Source: sbatch(1)."""
    own = {
        "SLURM_SUBMIT_DIR": job.work_dir,
        "SLURM_SUBMIT_HOST": socket.gethostname(),
        "SLURM_NTASKS": str(tasks),
        "SLURM_NPROCS": str(tasks),
    }
    if job.options.cpus_per_task is not None:
        own["SLURM_CPUS_PER_TASK"] = str(job.options.cpus_per_task)
        own["SLURM_TRES_PER_TASK"] = f"cpu={job.options.cpus_per_task}"
    if job.options.ntasks_per_node is not None:
        own["SLURM_NTASKS_PER_NODE"] = str(job.options.ntasks_per_node)
    if job.options.gpus_per_node is not None:
        own["SLURM_GPUS_PER_NODE"] = job.options.gpus_per_node
    return _FOR_MPIRUN | job.environment | own


def _gres(options: JobOptions) -> str | None:
    """Give the generic resources of a node; pyslurm wants a count with each."""
    asked = [f"gpu:{item}" for item in options.gpus_per_node.split(",")] if options.gpus_per_node else []
    asked += options.gres.split(",") if options.gres else []
    counted = (item if item.rpartition(":")[2].isdigit() else f"{item}:1" for item in asked)
    return ",".join(counted) or None


def _names(listed: str | None) -> list[str] | None:
    return None if listed is None else [listed]
