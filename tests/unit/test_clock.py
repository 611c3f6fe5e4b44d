"""The agent's time of day."""

from __future__ import annotations

import time

import pytest

from slurmbus_agent.clock import SteadyClock


def test_it_is_the_time_of_day() -> None:
    before = time.time()
    clock = SteadyClock()
    assert before - 1 <= clock() <= time.time() + 1


def test_a_clock_that_is_put_forward_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    before, real = clock(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3 * 86400)
    assert clock() - before < 3600
