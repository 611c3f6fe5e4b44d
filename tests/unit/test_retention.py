"""How long finished jobs are kept: whatever is set and asked for, never too short."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmbus_agent.retention import DAY, Finding, Outcome, RetentionSettings, Wish, judge, outcome
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import FINAL, JobState
from slurmbus_protocol.subjects import new_ulid

KEY = new_ulid()
NOW = 1_800_000_000.0

times = st.floats(NOW - 400 * DAY, NOW + 400 * DAY)
durations = st.floats(0, 200) | st.just(math.inf)
settings = st.builds(
    RetentionSettings,
    succeeded_days=durations,
    failed_days=durations,
    lost_days=durations,
    after_expiry_hours=st.floats(0, 100),
    settle_minutes=st.floats(0, 1000),
)
wishes = st.none() | st.builds(
    Wish, older_than=st.none() | st.floats(0, 100 * DAY), outcomes=st.frozensets(st.sampled_from(Outcome))
)


def record(state: JobState) -> Record:
    return Record(key=KEY, site="site", epoch=1, state=state, name="x", submitter="me", created_at=NOW, updated_at=NOW)


findings = st.builds(
    Finding,
    record=st.none() | st.sampled_from(JobState).map(record),
    ended_at=times,
    expires_at=times,
    followed=st.booleans(),
)


@given(findings, settings, wishes)
def test_nothing_is_forgotten_that_must_not_be(found: Finding, settings: RetentionSettings, wish: Wish | None) -> None:
    verdict = judge(found, NOW, settings, wish)
    assert verdict.why
    if not verdict.forget:
        return
    assert not found.followed
    assert found.record is not None
    assert found.record.state in FINAL
    assert found.expires_at + settings.after_expiry_hours * 3600 <= NOW
    assert found.ended_at + settings.settle_minutes * 60 <= NOW
    kind = outcome(found.record.state)
    assert wish is None or kind in wish.outcomes
    days = {
        Outcome.SUCCEEDED: settings.succeeded_days,
        Outcome.FAILED: settings.failed_days,
        Outcome.LOST: settings.lost_days,
    }[kind]
    kept = days * DAY if wish is None or wish.older_than is None else wish.older_than
    assert found.ended_at + kept <= NOW


@given(findings, settings, wishes, st.floats(0, 1000 * DAY))
def test_time_brings_it_about_and_never_undoes_it(
    found: Finding, settings: RetentionSettings, wish: Wish | None, later: float
) -> None:
    verdict = judge(found, NOW, settings, wish)
    if verdict.forget:
        assert judge(found, NOW + later, settings, wish).forget
    elif verdict.due_at is not None:
        assert verdict.due_at > NOW
        assert not judge(found, math.nextafter(verdict.due_at, 0), settings, wish).forget
        assert judge(found, verdict.due_at, settings, wish).forget or math.isinf(verdict.due_at)
    else:
        assert not judge(found, NOW + later, settings, wish).forget


@pytest.mark.parametrize(
    ("state", "days"), [(JobState.COMPLETED, 7), (JobState.FAILED, 30), (JobState.REJECTED, 30), (JobState.LOST, 90)]
)
def test_failures_are_kept_longer(state: JobState, days: float) -> None:
    found = Finding(record(state), ended_at=NOW, expires_at=NOW)
    assert judge(found, NOW, RetentionSettings()).due_at == NOW + days * DAY


def test_a_late_expiry_counts_more_than_the_age() -> None:
    found = Finding(record(JobState.COMPLETED), ended_at=NOW - 50 * DAY, expires_at=NOW - DAY / 2)
    verdict = judge(found, NOW, RetentionSettings())
    assert (verdict.forget, verdict.why) == (False, "its request hasn't been expired for 24 hours")
    assert verdict.due_at == NOW + DAY / 2
    by_hand = judge(found, NOW, RetentionSettings(), Wish(older_than=0))
    assert not by_hand.forget
