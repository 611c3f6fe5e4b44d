"""Job steps: how programs are started on the job's other nodes. Source: srun(1)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Give an environment in which srun does what its arguments say; its tasks get Slurm's variables anew."""
    return {name: value for name, value in env.items() if not name.startswith(_DEFINES_A_STEP)}


def one_on_each(nodes: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Give the srun that starts one process on each of these nodes, beside whatever else runs there.

    The step takes nothing away from others (``--overlap``) and may use all that the job has on these nodes: without
    ``--exact`` it gets all CPUs and GPUs, and ``--mem=0`` is all of the memory. The end of one process, or of a node,
    doesn't end the others. Works the same from Slurm 20.11 on.
    """
    return [
        "srun",
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes)}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(nodes)}",
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
