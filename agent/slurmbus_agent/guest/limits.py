"""What the agent may use on the login node, by the user's settings, the site's policy and the kernel's limit."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from typing import Annotated

import msgspec

from slurmbus_agent import budgets

_Positive = Annotated[float, msgspec.Meta(gt=0)]


class HostLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[limits]`` of the agent's settings and of a site's policy. What isn't named isn't limited."""

    cpu_minutes: _Positive | None = None
    """CPU time of one process, as ``ps`` shows it, at which the site ends it."""
    memory_mib: _Positive | None = None
    """Memory of the agent and its scheduler's process together."""
    calls_per_second: _Positive | None = None
    """Calls to the controller, submits included, on average over five minutes."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits in force."""

    cpu_seconds: float
    memory: float
    """Bytes."""
    calls_per_second: float
    """On average."""
    calls_are_limited: bool = False
    """Whether somebody has set this one: then submits wait for their turn, too."""


def in_force(*of: HostLimits, kernel_cpu_seconds: float | None = None) -> Limits:
    """Give the strictest of all limits, and the agent's own where nobody has set one."""
    calls = _least(limits.calls_per_second for limits in of)
    cpu = _least([*(_times(limits.cpu_minutes, 60.0) for limits in of), kernel_cpu_seconds])
    memory = _least(_times(limits.memory_mib, 1024.0 * 1024.0) for limits in of)
    return Limits(
        cpu_seconds=cpu or budgets.CPU_MINUTES * 60.0,
        memory=memory or budgets.MEMORY_MIB * 1024.0 * 1024.0,
        calls_per_second=min(calls or budgets.READS_PER_SECOND, budgets.READS_PER_SECOND),
        calls_are_limited=calls is not None,
    )


def kernel_cpu_seconds() -> float | None:
    """Give the CPU time at which the kernel ends this process, if it does. Source: getrlimit(2), RLIMIT_CPU."""
    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    return None if soft == resource.RLIM_INFINITY else float(soft)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
