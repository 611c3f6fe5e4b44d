"""Sending a running job back to the queue: which one may be sent, and what scontrol(1) says about it. Pure."""

from __future__ import annotations

import re

from slurmbus_agent.scheduler import words
from slurmbus_agent.scheduler.array import split_name
from slurmbus_agent.scheduler.base import Observation, OutcomeUnknown, Refused, Unavailable
from slurmbus_agent.scheduler.command import Ended
from slurmbus_agent.scheduler.words import Meaning
from slurmbus_protocol.states import FINAL

_GONE = "Invalid job id specified"
_NO = re.compile(r"^(?:\d[\d_\[\],-]*: (?P<task>.+)|(?P<job>.+) for job \S+)$", re.MULTILINE)
"""Of an array's task scontrol says whose error it is before the error's text, of a single job afterwards."""


def task_of(name: str) -> int | None:
    """Give the index of the one task that a name in Slurm means; None for a single job."""
    tasks = split_name(name)[1]
    if tasks is None:
        return None
    (task,) = tasks
    return task


def word(job_id: int, task: int | None) -> str:
    """Give what scontrol is told."""
    return str(job_id) if task is None else f"{job_id}_{task}"


def is_meant(seen: Observation | None, name: str) -> bool:
    """Tell whether the controller knows the job under this name.

    Raises:
        Refused: it doesn't run. Slurm itself would start a job that has ended once more.
    """
    if seen is None or seen.name != name:
        return False
    if seen.state == "PENDING" or seen.state in FINAL or "COMPLETING" in seen.flags:
        raise Refused(f"Slurm says that the job is {' '.join((seen.state, *seen.flags))}")
    return True


def done(ended: Ended) -> bool:
    """Find out what ``scontrol requeue`` did; False when the controller doesn't know the job any more."""
    if ended.code == 0 and not ended.trouble:
        return True
    said = [match["task"] or match["job"] for match in _NO.finditer(ended.stderr)]
    if ended.trouble or not said:
        raise OutcomeUnknown(f"the requeue failed on its way: {ended.said}")
    text = said[-1]
    if text == _GONE:
        return False
    match words.of_words(text):
        case Meaning.REFUSED:
            raise Refused(text)
        case Meaning.NOT_SENT:
            raise Unavailable(text)
        case Meaning.UNKNOWN:
            raise OutcomeUnknown(f"the requeue failed on its way: {text}")
