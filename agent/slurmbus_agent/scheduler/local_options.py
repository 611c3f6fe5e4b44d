"""What a job's options mean on this machine.

Kept: the time limit and the signal before it, and the numbers of tasks and CPUs. Ignored: whatever says where a job
runs and how much it may take, since there is one machine and nobody to share it with. Refused: what would make another
job of it.
"""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

from slurmbus_agent.scheduler.base import Refused
from slurmbus_protocol.messages import JobOptions

REFUSED = {
    "dependency": "there are no Slurm jobs to wait for",
    "begin": "jobs start at once",
    "deadline": "jobs start at once",
    "hold": "nobody could release it",
    "container": "it would run outside of its container",
    "container_id": "it would run outside of its container",
}
_SIGNAL = re.compile(r"(?P<flags>[RB]+):(?:SIG)?(?P<name>\w+)(?:@(?P<seconds>\d+))?", re.IGNORECASE)
_SECONDS = 60
"""How early the signal comes when nothing is said. Source: sbatch(1), ``--signal``."""


class EarlySignal(NamedTuple):
    """The signal before the time limit."""

    number: int
    seconds: int


def check(options: JobOptions) -> None:
    """Refuse the options that can be neither kept nor ignored here."""
    for name, reason in REFUSED.items():
        if getattr(options, name):
            raise Refused(
                f"the option {name} has no meaning on this machine: {reason}",
                hint="set it where only the cluster's jobs get it, e.g. when ComputeResource.mode is 'slurm'",
            )


def early_signal(options: JobOptions) -> EarlySignal | None:
    """Give the signal that the batch script gets before the time limit; there are no steps that could get one."""
    match = _SIGNAL.fullmatch(options.signal or "")
    if match is None or "B" not in match["flags"].upper():
        return None
    name = match["name"].upper()
    try:
        number = int(name) if name.isdigit() else signal.Signals[f"SIG{name}"].value
    except KeyError:
        raise Refused(f"signal: there is no {match['name']}") from None
    return EarlySignal(number, int(match["seconds"] or _SECONDS))
