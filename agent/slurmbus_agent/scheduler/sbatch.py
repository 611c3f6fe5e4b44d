"""Submitting a job with ``sbatch``; see sbatch(1).

The job gets the environment that sbatch itself is started with, and what sbatch and slurmd add: nothing of the agent's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from slurmbus_agent.scheduler import words
from slurmbus_agent.scheduler.array import ARRAY_TASK, expression
from slurmbus_agent.scheduler.base import BatchJob, OutcomeUnknown, Refused, Unavailable
from slurmbus_agent.scheduler.command import Ended, run
from slurmbus_agent.scheduler.hints import Node, hint_for, hint_for_unknown
from slurmbus_agent.scheduler.sbatch_options import arguments
from slurmbus_agent.scheduler.words import Meaning
from slurmbus_protocol.messages import Partition

_ID = re.compile(r"(\d+)(;\S+)?")
_EXTRA_IS_KNOWN = ("--extra=known", "--version")
"""Fails where ``--extra`` is taken for the beginning of ``--extra-node-info``, whose value is numbers."""


def submit(
    job: BatchJob,
    *,
    sbatch: str,
    conf: Mapping[str, str],
    patience: float,
    owner: int | None,
    site: Callable[[], tuple[list[Partition], list[Node]]],
) -> int:
    """Submit a job and give its id.

    Args:
        job: what to submit.
        sbatch: the command's path.
        conf: SLURM_CONF, where it has to be named.
        patience: seconds until sbatch is killed and the outcome is unknown.
        owner: see :func:`slurmbus_agent.scheduler.command.run`.
        site: asked for a hint.

    Raises:
        Refused: the controller, or sbatch before it asked it, said no.
        Unavailable: nothing was sent, or the controller said: not now.
        OutcomeUnknown: anything else.
    """
    env = {**job.environment, **conf}
    if job.options.node_extra is not None:
        _check_extra(sbatch, env, patience, owner)
    ended = run(
        [sbatch, *argv(job)],
        env=env,
        patience=patience,
        cwd=job.work_dir if Path(job.work_dir).is_dir() else "/",  # what the job finds as SLURM_SUBMIT_DIR
        stdin=job.script.encode(),
        stop_at=words.RETRYING,
        owner=owner,
    )
    found = _ids(ended)
    if len(found) == 1 and ended.code == 0:
        return found.pop()
    if found:  # the name tells which job it is
        raise OutcomeUnknown(f"sbatch gave an id and said: {ended.said}")
    match words.of_submit(ended):
        case Meaning.REFUSED:
            hint = hint_for_unknown(ended.stderr) or hint_for(words.number_of(ended), job.options, site)
            raise Refused(ended.said, hint=hint)
        case Meaning.NOT_SENT:
            raise Unavailable(ended.said)
        case Meaning.UNKNOWN:
            raise OutcomeUnknown(f"it isn't known whether sbatch has submitted the job: {ended.said}")


def _check_extra(sbatch: str, env: Mapping[str, str], patience: float, owner: int | None) -> None:
    """Refuse ``--extra`` where sbatch is older than it: abbreviations are allowed, and it would mean something else."""
    ended = run([sbatch, *_EXTRA_IS_KNOWN], env=env, patience=patience, owner=owner)
    if ended.trouble:
        raise Unavailable(ended.said)
    if ended.code != 0:
        said = "sbatch: unrecognized option '--extra'"
        raise Refused(said, hint=hint_for_unknown(said))


def argv(job: BatchJob) -> list[str]:
    """Give sbatch's arguments."""
    output = job.output.replace("%", "%%").replace(ARRAY_TASK, "%a")
    throttle = f"%{job.array_throttle}" if job.array_throttle else ""
    return [
        "--parsable",
        f"--job-name={job.name}",
        f"--chdir={job.work_dir}",
        f"--output={output}",
        "--open-mode=append",  # a requeued job shall not wipe out what its first start said
        "--export=ALL",
        *([f"--comment={job.comment}"] if job.comment else []),
        *([f"--array={expression(job.array)}{throttle}"] if job.array else []),
        *arguments(job.options),
    ]


def _ids(ended: Ended) -> set[int]:
    """Find the id: ``123``, or ``123;cluster``, on a line of its own. A site's wrapper may print further lines."""
    lines = (_ID.fullmatch(line.strip()) for line in ended.stdout.splitlines())
    return {int(line[1]) for line in lines if line}
