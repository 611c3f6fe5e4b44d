"""How long a signed request counts, whatever the bus says what time it is."""

from __future__ import annotations

import math

import pytest

from slurmbus_agent.authority.expiry import OWN_CLOCK_MARGIN, Expiry, Memory
from slurmbus_protocol.errors import RequestExpired

NOW = 1_800_000_000.0


@pytest.mark.parametrize("bus", [NOW, None])
def test_a_request_expires_by_the_bus_s_clock_or_else_by_this_host_s(bus: float | None) -> None:
    expiry = Expiry(lambda: bus, lambda: NOW)
    expiry.check(NOW + 1)
    with pytest.raises(RequestExpired):
        expiry.check(NOW - 1)


def test_a_host_whose_clock_is_somewhat_wrong_refuses_nothing() -> None:
    Expiry(lambda: NOW, lambda: NOW + OWN_CLOCK_MARGIN).check(NOW + 1)


@pytest.mark.parametrize("age", [OWN_CLOCK_MARGIN + 1, 30 * 86400.0])
def test_a_bus_that_lies_about_the_time_brings_nothing_back(age: float) -> None:
    """It says that it is still the moment at which the request was signed."""
    with pytest.raises(RequestExpired, match="clock of the agent's host"):
        Expiry(lambda: NOW - age, lambda: NOW).check(NOW - age + 0.5)


def test_what_is_no_time_has_expired() -> None:
    with pytest.raises(RequestExpired):
        Expiry(lambda: NOW, lambda: NOW).check(math.nan)


def test_what_was_asked_is_known_for_as_long_as_it_can_come_again() -> None:
    now = [NOW]
    memory = Memory(lambda: now[0], most=3)
    assert memory.add("a", NOW + 60)
    assert not memory.add("a", NOW + 60)
    now[0] += 60 + OWN_CLOCK_MARGIN - 1
    assert "a" in memory
    now[0] += 2
    assert "a" not in memory
    assert memory.add("a", now[0] + 60)


def test_of_very_much_the_oldest_is_forgotten() -> None:
    memory = Memory(lambda: NOW, most=3)
    for number in range(1000):
        assert memory.add(number, NOW)
    assert len(memory) == 3
    assert [number for number in range(1000) if number in memory] == [997, 998, 999]
