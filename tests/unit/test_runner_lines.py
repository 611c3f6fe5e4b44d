"""What is shown of a stream that is over its limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmbus_agent.runner.lines import newest


@pytest.mark.parametrize(
    ("data", "after", "most", "ended", "expected"),
    [
        (b"abc\ndef\n", 0, 100, False, (0, b"abc\ndef\n")),
        (b"abc\ndef\ngh", 0, 100, False, (0, b"abc\ndef\n")),
        (b"abc\ndef\ngh", 0, 100, True, (0, b"abc\ndef\ngh")),
        (b"abc\ndef\ngh", 4, 100, False, (4, b"def\n")),
        (b"abc\ndef\nghi\n", 0, 7, False, (8, b"ghi\n")),
        (b"abc\ndef", 0, 100, False, (0, b"abc\n")),
        (b"abc", 0, 100, False, (0, b"")),
        (b"abc", 0, 100, True, (0, b"abc")),
        (b"a long line without an end", 0, 6, False, (20, b"an end")),
        (b"a long line\n", 0, 5, True, (7, b"line\n")),
        (b"", 0, 5, True, (0, b"")),
        (b"abc\n", 9, 5, True, (9, b"")),
    ],
)
def test_whole_lines(data: bytes, after: int, most: int, ended: bool, expected: tuple[int, bytes]) -> None:
    assert newest(data, 0, after, most, ended=ended) == expected


@given(
    data=st.lists(st.sampled_from([b"\n", b"a", b"bc", b"def"]), max_size=60).map(b"".join),
    offset=st.integers(0, 50),
    after=st.integers(0, 200),
    most=st.integers(1, 40),
    ended=st.booleans(),
)
def test_bytes_stay_at_their_offsets(data: bytes, offset: int, after: int, most: int, ended: bool) -> None:
    begin, lines = newest(data, offset, after, most, ended=ended)
    assert len(lines) <= most
    if lines:
        assert begin >= max(offset, after)
        assert data[begin - offset :].startswith(lines)
        whole = data[begin - offset - 1 : begin - offset] in {b"\n", b""} or begin == max(offset, after)
        assert whole or len(lines) == most or ended
        assert not ended or data.endswith(lines)
