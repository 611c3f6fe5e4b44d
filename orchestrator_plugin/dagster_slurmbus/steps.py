"""The steps of a job in Slurm's accounting, taken together. Pure."""

from __future__ import annotations

from slurmbus_protocol.messages import Accounting, AccountingStep

_NOT_OWN = {"batch", "extern", "interactive"}
"""Steps that Slurm makes by itself. Source: sacct(1), JobID."""


def has_own_steps(accounting: Accounting | None) -> bool:
    """Tell whether the job ran steps of its own, by srun or by a launcher."""
    return accounting is not None and any(step.step not in _NOT_OWN for step in accounting.steps)


def memory_at_once(accounting: Accounting | None) -> int:
    """Give the most memory that steps had that ran side by side: the sum of their peaks, on all nodes.

    The batch script runs beside every other step, and a launcher's step beside it is the rest of one program (the
    workers of a Ray cluster whose head is in the batch step). Peaks of different moments add up to too much rather than
    too little. A step's peak is the mean of its tasks' peaks, times the tasks: so accounting tells their sum.
    """
    sizes = [(step, _memory(step)) for step in (accounting.steps if accounting else ())]
    return max((sum(size for other, size in sizes if _beside(other, step)) for step, _ in sizes), default=0)


def _memory(step: AccountingStep) -> int:
    return (step.ave_rss or step.max_rss or 0) * (step.tasks or 1)


def _beside(other: AccountingStep, step: AccountingStep) -> bool:
    """Tell whether a step was running when another one began; an older agent doesn't tell when that was."""
    if other is step or other.step in _NOT_OWN:
        return True
    if other.start_time is None or step.start_time is None:
        return False
    return other.start_time <= step.start_time < (other.end_time or float("inf"))
