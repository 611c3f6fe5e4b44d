"""A job's options as arguments of sbatch."""

from __future__ import annotations

from slurmbus_protocol.messages import JobOptions

_FLAGS: dict[str, str] = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "reservation": "reservation",
    "constraint": "constraint",
    "time_limit_minutes": "time",
    "nodes": "nodes",
    "ntasks": "ntasks",
    "ntasks_per_node": "ntasks-per-node",
    "cpus_per_task": "cpus-per-task",
    "gpus_per_node": "gpus-per-node",
    "gres": "gres",
    "nodelist": "nodelist",
    "exclude": "exclude",
}


def arguments(options: JobOptions) -> list[str]:
    """Give sbatch's arguments for these options.

    Left out are what a job gets however it is submitted: its name, script, folder, output, environment and comment.
    """
    given = [
        f"--{flag}={getattr(options, name)}" for name, flag in _FLAGS.items() if getattr(options, name) is not None
    ]
    if options.mem_per_node_mib is not None:
        given.append(f"--mem={options.mem_per_node_mib}M")
    if options.mem_per_cpu_mib is not None:
        given.append(f"--mem-per-cpu={options.mem_per_cpu_mib}M")
    if options.exclusive:
        given.append("--exclusive")
    given.append("--requeue" if options.requeue else "--no-requeue")
    return given
