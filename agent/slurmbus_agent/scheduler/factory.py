"""Where the schedulers are listed."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

from slurmbus_agent import budgets
from slurmbus_agent.guest.limits import Limits, in_force
from slurmbus_agent.scheduler import choosing
from slurmbus_agent.scheduler.base import Scheduler
from slurmbus_agent.scheduler.limits import CallBudget
from slurmbus_agent.scheduler.local import LocalScheduler
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_protocol.errors import InvalidSetting

log = logging.getLogger(__name__)

KINDS = ("native", "commands", "local", "auto")


def make_scheduler(
    kind: str, *, folder: Path, slurm_conf: str | None = None, limits: Limits | None = None
) -> Scheduler:
    """Make the scheduler of this kind; with ``auto`` that takes a second, in which two are tried.

    Args:
        kind: ``native`` is Slurm through pyslurm, ``commands`` is Slurm through its commands, ``local`` are processes
            of this machine; ``auto`` is native where pyslurm fits, else commands, and an error where neither can be
            used: nobody shall run jobs on a login node by mistake.
        folder: where local jobs are kept.
        slurm_conf: slurm.conf, where Slurm doesn't find it by itself.
        limits: what may be used of this host and of the controller.

    Raises:
        InvalidSetting: there is no such kind, or ``auto`` finds something missing.
    """
    if kind == "local":
        return LocalScheduler(folder)
    if kind not in KINDS:
        raise InvalidSetting(f"there is no scheduler {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    if kind == "auto":
        kind, why = choosing.automatic(slurm_conf)
        log.info("the scheduler is %r: %s", kind, why)
    argv = [sys.executable, "-m", "slurmbus_agent.scheduler.child", kind]
    limits = limits or in_force()
    budget = CallBudget(burst=budgets.READ_BURST, per_second=limits.calls_per_second, read_wait=budgets.READ_WAIT)
    if limits.calls_are_limited:
        budget = replace(budget, control_wait=budgets.CONTROL_WAIT_LIMITED, turn_wait=budgets.READ_WAIT)
    return ChildScheduler(
        [*argv, "--conf", slurm_conf] if slurm_conf else argv,
        kind=kind,
        budget=budget,
        cpu_limit=budgets.HAND_OVER_CPU * limits.cpu_seconds,
    )
