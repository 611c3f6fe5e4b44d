"""Times and sizes as Slurm writes them (sbatch(1), --time and --mem)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmbus.units import parse_memory_mib, parse_time_minutes
from slurmbus_protocol.errors import InvalidSetting


@pytest.mark.parametrize(
    ("value", "minutes"),
    [
        (90, 90),
        ("90", 90),
        (" 5 ", 5),
        ("10:30", 11),
        ("00:00:01", 1),
        ("00:10:00", 10),
        ("01:30:00", 90),
        ("1-00:00:00", 1440),
        ("1-00", 1440),
        ("2-12", 3600),
        ("1-02:30", 1590),
    ],
)
def test_times(value: str | int, minutes: int) -> None:
    assert parse_time_minutes(value) == minutes


@pytest.mark.parametrize(
    "value", ["", "0", 0, "00:00:00", "-5", "1:2:3:4", "1-", "ten", "1.5", "1-2-3", True, "UNLIMITED"]
)
def test_what_is_no_time(value: str | int) -> None:
    with pytest.raises(InvalidSetting, match="queue time"):
        parse_time_minutes(value, "queue time")


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_is_never_cut_short(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total:
        parsed = parse_time_minutes(f"{days}-{hours:02}:{minutes:02}:{seconds:02}")
        assert parsed * 60 - 60 < total <= parsed * 60


@pytest.mark.parametrize(
    ("value", "mib"),
    [
        (500, 500),
        ("500", 500),
        ("500M", 500),
        ("1G", 1024),
        ("1g", 1024),
        ("1.5G", 1536),
        ("2T", 2 * 1024**2),
        ("1024K", 1),
        ("1K", 1),
        ("1GiB", 1024),
        ("1 GB", 1024),
        ("0.1G", 103),
    ],
)
def test_sizes(value: str | int, mib: int) -> None:
    assert parse_memory_mib(value) == mib


@pytest.mark.parametrize("value", ["", "0", 0, "G", "1X", "-1G", "1,5G", "1G2", True])
def test_what_is_no_size(value: str | int) -> None:
    with pytest.raises(InvalidSetting, match="mem"):
        parse_memory_mib(value)
