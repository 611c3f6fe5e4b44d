"""Where the schedulers are listed."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from slurmbus_agent import budgets
from slurmbus_agent.scheduler.base import Scheduler
from slurmbus_agent.scheduler.limits import CallBudget
from slurmbus_agent.scheduler.local import LocalScheduler
from slurmbus_agent.scheduler.process import ChildScheduler
from slurmbus_protocol.errors import InvalidSetting

KINDS = ("native", "local", "auto")

SLURM_CONFS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
"""Where packages, older packages and configless sites (slurmd, sackd) put it."""


def make_scheduler(kind: str, *, folder: Path, slurm_conf: str | None = None) -> Scheduler:
    """Make the scheduler of this kind.

    Args:
        kind: ``native`` is Slurm through pyslurm, ``local`` are processes of this machine, ``auto`` is native where
            that is possible and an error elsewhere: nobody shall run jobs on a login node by mistake.
        folder: where local jobs are kept.
        slurm_conf: slurm.conf, where libslurm doesn't find it by itself.

    Raises:
        InvalidSetting: there is no such kind, or ``auto`` finds something missing.
    """
    if kind == "local":
        return LocalScheduler(folder)
    if kind not in KINDS:
        raise InvalidSetting(f"there is no scheduler {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    if kind == "auto":
        _check_native(slurm_conf)
    argv = [sys.executable, "-m", "slurmbus_agent.scheduler.child", "native"]
    budget = CallBudget(burst=budgets.READ_BURST, per_second=budgets.READS_PER_SECOND, read_wait=budgets.READ_WAIT)
    return ChildScheduler([*argv, "--conf", slurm_conf] if slurm_conf else argv, budget=budget)


def _check_native(slurm_conf: str | None) -> None:
    if importlib.util.find_spec("pyslurm") is None:
        raise InvalidSetting(
            "pyslurm isn't installed here",
            hint="pip install 'slurmbus-agent[pyslurm]' on the cluster, or set the scheduler to 'local' on a laptop",
        )
    named = slurm_conf or os.environ.get("SLURM_CONF")
    if not any(Path(path).exists() for path in ([named] if named else SLURM_CONFS)):
        raise InvalidSetting(
            f"there is no slurm.conf at {named or ', '.join(SLURM_CONFS)}",
            hint="name it in the setting slurm_conf, or set the scheduler to 'native' if libslurm finds it otherwise",
        )
