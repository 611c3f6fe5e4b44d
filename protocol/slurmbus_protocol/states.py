"""The states of a job and the legal transitions between them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands. The final ones are Slurm's own, plus REJECTED and LOST.

    Source of Slurm's names: squeue(1), "JOB STATE CODES".
    """

    ACCEPTED = "ACCEPTED"
    STAGING = "STAGING"
    SUBMITTING = "SUBMITTING"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    PREEMPTED = "PREEMPTED"
    REJECTED = "REJECTED"
    LOST = "LOST"

    @property
    def is_final(self) -> bool:
        """True when nothing can follow any more."""
        return self in FINAL


FINAL: frozenset[JobState] = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.TIMEOUT,
        JobState.OUT_OF_MEMORY,
        JobState.NODE_FAIL,
        JobState.BOOT_FAIL,
        JobState.DEADLINE,
        JobState.PREEMPTED,
        JobState.REJECTED,
        JobState.LOST,
    }
)

_ENDS = FINAL - {JobState.REJECTED}

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.ACCEPTED: frozenset({JobState.STAGING, JobState.CANCELLED, JobState.REJECTED}),
    JobState.STAGING: frozenset({JobState.SUBMITTING, JobState.CANCELLED, JobState.REJECTED, JobState.LOST}),
    # A submit whose outcome was unknown may turn up in any later state.
    JobState.SUBMITTING: frozenset({JobState.PENDING, JobState.RUNNING, JobState.COMPLETING}) | FINAL,
    # Back to SUBMITTING: the controller forgot a job that nobody claimed.
    JobState.PENDING: frozenset({JobState.SUBMITTING, JobState.RUNNING, JobState.COMPLETING}) | _ENDS,
    # Back to PENDING: a requeue.
    JobState.RUNNING: frozenset({JobState.SUBMITTING, JobState.PENDING, JobState.COMPLETING}) | _ENDS,
    JobState.COMPLETING: frozenset({JobState.SUBMITTING, JobState.PENDING, JobState.RUNNING}) | _ENDS,
    **{state: frozenset() for state in FINAL},
}
"""state -> the states that may follow it."""


def may_follow(old: JobState, new: JobState) -> bool:
    """Tell whether ``new`` may follow ``old``; staying in a state is always allowed."""
    return old == new or new in TRANSITIONS[old]
