"""Choosing what to show of a stream that is over its limit: its newest whole lines."""

from __future__ import annotations


def newest(data: bytes, offset: int, after: int, most: int, *, ended: bool = False) -> tuple[int, bytes]:
    """Give the last whole lines in ``data``, and the offset in the stream at which they begin.

    ``data`` begins at ``offset`` of its stream and ends where the stream ends now; what lies before ``after`` has been
    shown already. Of the line that is being written nothing is given, unless the stream has ``ended``. When no whole
    line is among the last ``most`` bytes, these are given as they are.
    """
    start = max(offset, after, offset + len(data) - most)
    data = data[start - offset :]
    end = len(data) if ended else data.rfind(b"\n") + 1
    begin = 0 if start == after else data.find(b"\n") + 1
    if begin >= end and (ended or len(data) >= most):
        begin, end = 0, len(data)
    return start + begin, data[begin:end]
