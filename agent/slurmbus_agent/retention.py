"""How long finished jobs are kept; pure.

A job is forgotten when it has been over for as long as its outcome asks for, and not before its request has been
expired for a day: whoever publishes the same request again then is refused, although nobody remembers the job.
All times are the bus's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

DAY = 86400.0
_HOUR = 3600.0
_MINUTE = 60.0

Duration = Annotated[float, msgspec.Meta(ge=0)]


class RetentionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[retention]`` of the agent's settings; ``inf`` keeps for ever."""

    succeeded_days: Duration = 7.0
    failed_days: Duration = 30.0
    """Of everything that ended otherwise: somebody may still want to know why."""
    lost_days: Duration = 90.0
    """Of jobs of which nobody can say how they ended: their payload may have gone on."""
    after_expiry_hours: Duration = 24.0
    """Since the expiry of the request; a day is more than clocks ever differ. Less is for tests only."""
    settle_minutes: Duration = 15.0
    """Since the end, whatever else is set or asked for: accounting's figures may still follow."""
    every_minutes: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """How often the agent looks for jobs to be forgotten."""
    environments_days: Duration = 30.0
    """Since an environment was last used by a job."""


class Outcome(StrEnum):
    """How a job ended, as far as it matters for how long it is kept."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"


def outcome(state: JobState) -> Outcome:
    """Give the outcome of a final state."""
    if state is JobState.COMPLETED:
        return Outcome.SUCCEEDED
    return Outcome.LOST if state is JobState.LOST else Outcome.FAILED


@dataclass(frozen=True)
class Wish:
    """What shall be forgotten; the default is what the settings say."""

    older_than: float | None = None
    """Seconds since the end, instead of what the settings say for each outcome."""
    outcomes: frozenset[Outcome] = frozenset(Outcome)


@dataclass(frozen=True)
class Finding:
    """What is known of a job when it is judged."""

    record: Record | None
    """None when neither the bus nor the spool has it."""
    ended_at: float
    """When the bus stored its final record."""
    expires_at: float
    """When its request expires."""
    followed: bool = False
    """The agent still works on it."""


@dataclass(frozen=True)
class Verdict:
    """Whether a job may be forgotten now."""

    forget: bool
    why: str
    due_at: float | None = None
    """When it may be; None when time alone doesn't decide that."""


def judge(found: Finding, now: float, settings: RetentionSettings, wish: Wish | None = None) -> Verdict:
    """Tell whether a job may be forgotten at the bus's time ``now``, and why or why not."""
    wish = wish or Wish()
    if found.followed:
        return Verdict(forget=False, why="the agent still works on it")
    if found.record is None:
        return Verdict(forget=False, why="nobody knows how it ended")
    if not found.record.state.is_final:
        return Verdict(forget=False, why=f"unfinished: {found.record.state}")
    kind = outcome(found.record.state)
    if kind not in wish.outcomes:
        return Verdict(forget=False, why=f"{kind} jobs weren't asked for")
    kept = _days(settings, kind) * DAY if wish.older_than is None else wish.older_than
    waits = {
        f"{kind} jobs are kept for {_words(kept)}": found.ended_at + kept,
        f"it ended less than {_words(settings.settle_minutes * _MINUTE)} ago": (
            found.ended_at + settings.settle_minutes * _MINUTE
        ),
        f"its request hasn't been expired for {_words(settings.after_expiry_hours * _HOUR)}": (
            found.expires_at + settings.after_expiry_hours * _HOUR
        ),
    }
    why = max(waits, key=lambda reason: waits[reason])
    if waits[why] > now:
        return Verdict(forget=False, why=why, due_at=waits[why])
    return Verdict(forget=True, why=f"{kind} {_words(now - found.ended_at)} ago", due_at=waits[why])


def _days(settings: RetentionSettings, kind: Outcome) -> float:
    if kind is Outcome.SUCCEEDED:
        return settings.succeeded_days
    return settings.lost_days if kind is Outcome.LOST else settings.failed_days


def _words(seconds: float) -> str:
    if math.isinf(seconds):
        return "ever"
    for unit, length in (("days", DAY), ("hours", _HOUR), ("minutes", _MINUTE)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
