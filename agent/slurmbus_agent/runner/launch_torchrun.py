"""PyTorch: one ``torchrun`` on each node, which meet at the first one and start the payload's processes."""

from __future__ import annotations

import json
import os
import sys

from slurmbus_agent.runner import launch_network, launch_srun, launch_steps
from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_question import answer, module_of
from slurmbus_agent.runner.payload import NotStarted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slurmbus_agent.runner.launch_job import Launch

TORCH_HINT = "install it there (pip install torch), or name the Python that has it with TorchrunLauncher(python=…)"
TORCHRUN_HINT = "leave torchrun out: then it is started by the Python that has PyTorch"


def launch(job: Launch) -> int:
    """Run the payload, and give the exit code of the torchrun that failed first; its words name the process."""
    options, allocation = job.options, job.allocation
    names = [node.name for node in allocation.nodes]
    least = options["min_nodes"]
    if least is not None and not 1 <= least <= len(names):
        raise LaunchFailed(f"min_nodes={least}, but the job has {len(names)} node{'' if len(names) == 1 else 's'}")
    argv = [sys.executable, "-I", "-S", job.runner, "--torchrun", json.dumps(_wanted(job, _command(job)))]
    job.say(f"torchrun on {', '.join(names)}")
    if allocation.local or len(names) == 1:
        return job.run(argv)
    step = launch_steps.one_on_each(allocation, allocation.nodes, os.environ, [])
    if least is None:  # the others would wait for what doesn't come any more
        step.append("--kill-on-bad-exit=1")
    return launch_srun.run(job, [*step, *argv], launch_steps.environment(os.environ), "torchrun of node")


def _command(job: Launch) -> list[str]:
    """Give the words that start torchrun here and on the other nodes."""
    named = job.options["torchrun"]
    if named is None:
        module_of(job, str(job.options["python"]), "torch", TORCH_HINT)
        return [str(job.options["python"]), "-m", "torch.distributed.run"]
    try:
        answer(job, [str(named), "--help"])
    except NotStarted as error:
        raise LaunchFailed(f"torchrun: {error}; {TORCHRUN_HINT}", error.exit_code) from error
    return [str(named)]


def _wanted(job: Launch, command: list[str]) -> dict[str, Any]:
    """Give what every node must know; each adds what only it knows."""
    options, allocation = job.options, job.allocation
    nodes = len(allocation.nodes)
    host = launch_network.address_of(allocation.here.name, options["interface"]) if nodes > 1 else "127.0.0.1"
    (port,) = launch_network.free_ports(1)
    least = options["min_nodes"]
    program = job.plan.argv
    return {
        "command": command,
        "first": allocation.here.name,
        "nodes": {node.name: {"cpus": node.cpus, "tasks": node.tasks} for node in allocation.nodes},
        "processes": options["processes_per_node"],
        "interface": options["interface"],
        "again": bool(options["max_restarts"] or least is not None),
        "join_timeout": int(options["start_timeout"]),
        "arguments": [
            f"--nnodes={least}:{nodes}" if least is not None else f"--nnodes={nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={host}:{port}",
            f"--rdzv-id={allocation.job_id}.{job.start}",
            f"--max-restarts={options['max_restarts']}",
            *options["arguments"],
            *([] if program[0].endswith(".py") else ["--no-python"]),
            *program,
        ],
    }
