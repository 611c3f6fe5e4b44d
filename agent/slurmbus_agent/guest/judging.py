"""How much of each limit is used, and what follows from it: (use, limits) -> judgement. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from slurmbus_agent import budgets
from slurmbus_agent.guest.limits import Limits
from slurmbus_protocol.messages import BudgetUse


@dataclass(frozen=True, kw_only=True)
class Use:
    """What was measured."""

    cpu_seconds: float
    """Of this process alone, as whoever ends processes counts it."""
    memory: float
    """Bytes of the agent and its scheduler's process."""
    calls: float
    """To the controller, in the last ``window`` seconds."""
    stat_calls: float
    """On the spool, in the last ``window`` seconds."""
    window: float
    age: float
    """Seconds since the process began."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What follows."""

    budgets: tuple[BudgetUse, ...] = ()
    stretch: float = 1.0
    """By how much everything that can wait takes longer."""
    slowed: str = ""
    """Why, in words."""
    hand_over: str = ""
    """Why a fresh process shall go on, in words; empty when this one can."""


def judge(use: Use, limits: Limits) -> Judgement:
    """Compare what is used with what may be."""
    cpu = BudgetUse(name="cpu-time", used=use.cpu_seconds, limit=limits.cpu_seconds, unit="s")
    memory = BudgetUse(name="memory", used=use.memory, limit=limits.memory, unit="B")
    calls = BudgetUse(
        name="calls",
        used=use.calls,
        limit=limits.calls_per_second * use.window,
        unit="calls",
        window_seconds=use.window,
    )
    looks = BudgetUse(
        name="stat-calls",
        used=use.stat_calls,
        limit=budgets.SPOOL_READS_PER_SECOND * use.window,
        unit="calls",
        window_seconds=use.window,
    )
    hand_over = ""
    if _share(cpu) >= budgets.HAND_OVER_CPU and use.age >= budgets.HAND_OVER_LEAST:
        hand_over = _words(cpu)
    elif _share(memory) >= budgets.HAND_OVER_MEMORY and use.age >= budgets.HAND_OVER_PAUSE:
        hand_over = _words(memory)
    # CPU time only slows an agent down whose work nobody has taken over: a fresh process begins at nothing.
    stretches = {cpu: _stretch(_share(cpu), budgets.SLOW_CPU)}
    if limits.calls_are_limited:  # else what is asked keeps within the agent's own budget anyway
        stretches[calls] = _stretch(_share(calls), budgets.SLOW_CALLS)
    worst = max(stretches, key=lambda budget: stretches[budget])
    stretch = stretches[worst]
    return Judgement(
        budgets=(cpu, memory, calls, looks),
        stretch=stretch,
        slowed=f"{_words(worst)}: everything that can wait takes {stretch:.1f} times as long" if stretch > 1 else "",
        hand_over=hand_over,
    )


def _share(budget: BudgetUse) -> float:
    return budget.used / budget.limit


def _stretch(share: float, since: float) -> float:
    """Give 1 up to a share of the limit, and the most at the limit."""
    over = min(max(0.0, (share - since) / (1.0 - since)), 1.0)
    return 1.0 + over * (budgets.STRETCH_MOST - 1.0)


def _words(budget: BudgetUse) -> str:
    within = f" in {budget.window_seconds:.0f} s" if budget.window_seconds else ""
    return f"{budget.name}: {_amount(budget.used, budget.unit)} of {_amount(budget.limit, budget.unit)}{within}"


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value / 60:.1f} min" if value >= 60 else f"{value:.1f} s"  # noqa: PLR2004 - a minute
    return f"{value / 1024 / 1024:.0f} MiB" if unit == "B" else f"{value:.0f}"
