"""Where the schedulers are listed."""

from __future__ import annotations

from pathlib import Path

from slurmbus_agent.scheduler.base import Scheduler
from slurmbus_agent.scheduler.local import LocalScheduler
from slurmbus_protocol.errors import InvalidSetting


def make_scheduler(kind: str, *, folder: Path, slurm_conf: str | None = None) -> Scheduler:
    """Make the scheduler of this kind: ``local``."""
    if kind == "local":
        return LocalScheduler(folder)
    raise InvalidSetting(f"unknown scheduler {kind!r}")
