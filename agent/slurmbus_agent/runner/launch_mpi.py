"""MPI: the payload as the ranks of a program, by Slurm's srun or by the MPI's own mpirun."""

from __future__ import annotations

import os
import re

from slurmbus_agent.runner import launch_srun
from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_output import Output
from slurmbus_agent.runner.launch_question import answer, module_of
from slurmbus_agent.runner.payload import NotStarted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from slurmbus_agent.runner.launch_job import Launch

BEST_TYPES = ("pmix", "pmi2")
"""Types of srun's --mpi by which ranks find each other, the one that most MPIs know first."""
OPEN_MPI = "Open MPI"
HYDRA = "Hydra"
"""The mpirun of MPICH, Intel MPI and MVAPICH."""
LABELS = {
    "srun": re.compile(r"^ *(\d+): ?"),
    OPEN_MPI: re.compile(r"^\[\d+,(\d+)\]<std(?:out|err)>: ?"),
    HYDRA: re.compile(r"^\[(\d+)\] ?"),
}
"""How they mark a line with its rank."""
SINGLETONS = "singletons will be started"
"""What Open MPI says when it doesn't understand how its ranks shall find each other."""
INTERFACE_VARIABLES = ("OMPI_MCA_btl_tcp_if_include", "PRTE_MCA_prte_if_include", "HYDRA_IFACE", "FI_TCP_IFACE")
MPI4PY_HINT = (
    "install it there (pip install mpi4py), name the Python that has it with MpiLauncher(python=…), or set "
    "mpi4py=False if the payload doesn't use it"
)
MPIRUN_HINT = "load an MPI in the preamble (module load …), or name its command with MpiLauncher(mpirun=…)"


def launch(job: Launch) -> int:
    """Run the payload as ranks, and give the exit code, or minus the signal, of the rank that failed first."""
    if job.options["mpi4py"]:
        python, *rest = job.plan.argv
        module_of(job, python, "mpi4py", MPI4PY_HINT)
        argv = [python, "-m", "mpi4py", *rest]
    else:
        argv = job.plan.argv
    if job.options["how"] == "mpirun" or job.allocation.local:
        return _mpirun(job, argv)
    return _srun(job, argv)


def ranks_of(job: Launch) -> int:
    """Give how many ranks there shall be."""
    options = job.options
    per_node = options["ranks_per_node"]
    if options["ranks"]:
        return int(options["ranks"])
    return int(per_node) * len(job.allocation.nodes) if per_node else job.allocation.tasks


# ------------------------------------------------------------------ srun


def _srun(job: Launch, argv: list[str]) -> int:
    kind = _type(job)
    options, ranks = job.options, ranks_of(job)
    words = [
        "srun",
        f"--nodes={min(ranks, len(job.allocation.nodes))}",
        f"--ntasks={ranks}",
        "--kill-on-bad-exit=1",
        "--quit-on-interrupt",
        "--input=none",
        "--export=ALL",
        "--quiet",
    ]
    if kind:
        words.append(f"--mpi={kind}")
    if options["ranks_per_node"]:
        words.append(f"--ntasks-per-node={options['ranks_per_node']}")
    elif options["ranks"] and "SLURM_NTASKS_PER_NODE" in os.environ:  # the job's own, which srun would hold against us
        words.append(f"--ntasks-per-node={-(-ranks // len(job.allocation.nodes))}")
    if job.allocation.cpus_per_task:  # since 22.05 srun doesn't take the job's
        words.append(f"--cpus-per-task={job.allocation.cpus_per_task}")
    if options["prefix"]:
        words.append("--label")
    job.say(f"{_ranks(ranks)} by srun --mpi={kind or 'the default'} on {_nodes(job)}")

    def alone(line: str) -> None:
        if SINGLETONS in line:
            raise LaunchFailed(
                f"mpi: the payload's Open MPI doesn't know srun --mpi={kind}, so every rank would be alone; "
                "set how='mpirun', or mpi='pmix' where srun offers that"
            )

    argv = [*words, *options["arguments"], *argv]
    env = {**os.environ, **_interface(options)}
    return launch_srun.run(job, argv, env, "rank", _prefixes(job, "srun"), alone)


def _type(job: Launch) -> str | None:
    """Give the type for srun's --mpi. The default of many sites is none, with which every rank silently is alone."""
    wanted = job.options["mpi"]
    _, lines = answer(job, ["srun", "--mpi=list"])
    offered = [word for line in lines for word in re.findall(r"\b(?:none|openmpi|cray_\w+|pmi\w+)\b", line)]
    if wanted is None:
        return next((kind for kind in BEST_TYPES if kind in offered), None)
    if offered and wanted not in offered:
        raise LaunchFailed(f"mpi: this site's srun doesn't offer {wanted!r}; it offers {', '.join(offered)}")
    return str(wanted)


# ------------------------------------------------------------------ mpirun


def _mpirun(job: Launch, argv: list[str]) -> int:
    command, ranks = str(job.options["mpirun"]), ranks_of(job)
    kind = _kind(job, command)
    words = [command, "-n", str(ranks), *_flags(job, command, kind), *job.options["arguments"], *argv]
    job.say(f"{_ranks(ranks)} by {command} ({kind or 'of an unknown kind'}) on {_nodes(job)}")
    rewrite, env = _prefixes(job, kind), _interface(job.options)
    base = dict(os.environ)
    if job.allocation.local:  # Open MPI would take this machine for a node of Slurm's
        base.pop("SLURM_JOBID", None)
    if rewrite is None:
        return job.run(words, env, base=base)
    outputs = [Output(job.loop, descriptor, rewrite=rewrite) for descriptor in (1, 2)]
    try:
        return job.run(words, env, outputs[0].writer, outputs[1].writer, base)
    finally:
        for output in outputs:
            output.finish()


def _flags(job: Launch, command: str, kind: str) -> list[str]:
    """Give what was asked for in the words of this kind of mpirun."""
    per_node, prefix = job.options["ranks_per_node"], job.options["prefix"]
    if kind == OPEN_MPI:
        flags = ["--map-by", f"ppr:{per_node}:node"] if per_node else []
        more = ["--oversubscribe"] if job.allocation.local and not per_node else []  # a laptop has few cores
        return [*flags, *more, *(["--tag-output"] if prefix else [])]
    if kind == HYDRA:
        return [*(["-ppn", str(per_node)] if per_node else []), *(["-prepend-rank"] if prefix else [])]
    if per_node or prefix:
        raise LaunchFailed(
            f"mpirun: {command!r} is neither Open MPI's nor MPICH's; say what it shall do with arguments=[…] "
            "instead of ranks_per_node and prefix"
        )
    return []


def _kind(job: Launch, command: str) -> str:
    try:
        _, lines = answer(job, [command, "--version"])
    except NotStarted as error:
        raise LaunchFailed(f"mpirun: {error}; {MPIRUN_HINT}", error.exit_code) from error
    text = "\n".join(lines).lower()
    if any(name in text for name in ("open mpi", "openrte", "open-mpi", "prte")):
        return OPEN_MPI
    return HYDRA if any(name in text for name in ("hydra", "mpich", "intel", "mvapich")) else ""


# ------------------------------------------------------------------ both


def _interface(options: dict[str, Any]) -> dict[str, str]:
    name = options["interface"]
    return dict.fromkeys(INTERFACE_VARIABLES, str(name)) if name else {}


def _prefixes(job: Launch, kind: str) -> Callable[[str], str] | None:
    """Give what makes ``[rank 3] …`` of a line as srun or mpirun marks it; lines without a mark are their own."""
    if not job.options["prefix"]:
        return None
    mark = LABELS[kind]
    return lambda line: mark.sub(lambda found: f"[rank {found[1]}] ", line, count=1)


def _ranks(count: int) -> str:
    return f"{count} rank{'' if count == 1 else 's'}"


def _nodes(job: Launch) -> str:
    return ", ".join(node.name for node in job.allocation.nodes)
