"""Job steps: how programs are started on the job's other nodes. Source: srun(1)."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurmbus_agent.runner.launch_allocation import Allocation, Node

_DEFINES_A_STEP = (
    "SLURM_CPU_",  # _BIND…, _FREQ
    "SLURM_CPUS_PER_",
    "SRUN_CPUS_PER_TASK",
    "SLURM_DISTRIBUTION",
    "SLURM_EXACT",
    "SLURM_EXCLUSIVE",
    "SLURM_EXPORT_ENV",
    "SLURM_GPU",
    "SLURM_GRES",
    "SLURM_HINT",
    "SLURM_KILL_BAD_EXIT",
    "SLURM_LABELIO",
    "SLURM_MEM_",
    "SLURM_MPI_TYPE",
    "SLURM_NCORES_PER_SOCKET",
    "SLURM_NO_KILL",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_OPEN_MODE",
    "SLURM_OVERCOMMIT",
    "SLURM_OVERLAP",
    "SLURM_STDERRMODE",
    "SLURM_STDINMODE",
    "SLURM_STDOUTMODE",
    "SLURM_THREADS",
    "SLURM_TIMELIMIT",
    "SLURM_TRES_",
    "SLURM_UNBUFFEREDIO",
    "SLURM_WAIT",
    "SLURM_WHOLE",
)
"""What srun takes from its environment although it was meant for the job: beginnings of names."""

_GPUS_OF_A_TASK = re.compile(r"gres[/:]gpu")
"""In SLURM_TRES_PER_TASK; Slurm 23.11 has a colon there."""


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Give an environment in which srun does what its arguments say; its tasks get Slurm's variables anew."""
    return {name: value for name, value in env.items() if not name.startswith(_DEFINES_A_STEP)}


def one_on_each(
    allocation: Allocation, nodes: Sequence[Node], env: Mapping[str, str], argv: Sequence[str]
) -> list[str]:
    """Give the srun that starts one process on each of these nodes, beside whatever else runs there.

    The step takes nothing away from others (``--overlap``) and may use all that the job has on these nodes: without
    ``--exact`` it gets all CPUs, ``--mem=0`` is all of the memory, and for GPUs see :func:`gpus_of_each`. The end of
    one process, or of a node, doesn't end the others. Works the same from Slurm 20.11 on. It wants :func:`environment`.

    Args:
        allocation: the job's.
        nodes: those of the step.
        env: what the job's batch script has.
        argv: the program.
    """
    gpus = gpus_of_each(allocation, nodes, env)
    return [
        "srun",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes)}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(node.name for node in nodes)}",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        "--overlap",
        "--mem=0",
        "--cpu-bind=none",
        "--mpi=none",
        "--export=ALL",
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--no-kill",
        "--input=none",
        "--unbuffered",
        "--quiet",
        *argv,
    ]


def gpus_of_each(allocation: Allocation, nodes: Sequence[Node], env: Mapping[str, str]) -> int | None:
    """Give how many GPUs a step must ask for on each node; None where it gets all without asking.

    A step without words of its own takes the job's for itself: of GPUs for each task it gets one task's, and a sum for
    the whole job may be more than its nodes have. There is one number for all nodes, so it is that of the node that has
    the fewest; where that isn't known it is 1, which each has.
    """
    here = env.get("SLURM_GPUS_ON_NODE", "")
    if not here.isdigit():
        return None
    if "SLURM_GPUS_PER_TASK" in env or _GPUS_OF_A_TASK.search(env.get("SLURM_TRES_PER_TASK", "")):
        return int(here) // allocation.here.tasks * min(node.tasks for node in nodes)
    if "SLURM_GPUS" in env:
        every = sum(int(item.rpartition(":")[2]) for item in env["SLURM_GPUS"].split(","))
        return int(here) if int(here) * len(allocation.nodes) == every else 1
    return None
