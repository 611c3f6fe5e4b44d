"""The job's output on its way into Dagster's compute logs."""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

from dagster_slurmbus.shown import Shown
from slurmbus.events import Gap, Output
from slurmbus_protocol.subjects import Stream

Captured = Callable[[Stream, int, int], list[bytes]]
"""Gives what stands at this position (and of this length) in each log that this run's attempts have captured."""


class Forwarder:
    """Writes a job's stdout and stderr to this process's own, which Dagster captures. Bytes stay as they are.

    Args:
        shown: what the run shows already, and where to keep what this adds.
        captured: the logs themselves.
    """

    def __init__(self, shown: Shown, captured: Captured) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder("replace") for stream in (Stream.STDOUT, Stream.STDERR)}
        self._shown = shown
        self._captured = captured
        self._doubted: dict[tuple[int, Stream], list[bytes]] = {}

    def output(self, event: Output) -> None:
        """Show what isn't shown yet, and flush, so that it is seen at once."""
        start, stream = event.start, event.stream
        until = event.offset + len(event.data)
        data = event.data[max(0, self._shown.until(start, stream) - event.offset) :]
        known = self._known(start, stream, data)
        if known:
            self._shown.end(start, stream, until - len(data) + known)
        self._show(start, stream, until, data[known:])

    def gap(self, gap: Gap) -> None:
        """Mark the place of bytes that don't come, in the stream itself."""
        what = "left out" if gap.over_limit else "missing"
        mark = f"\n[slurmbus: {gap.length:,} bytes are {what} here]\n"
        self._show(gap.start, gap.stream, gap.offset + gap.length, mark.encode())

    def is_shown(self, gap: Gap) -> bool:
        """Tell whether this gap was told already."""
        return gap.offset + gap.length <= self._shown.until(gap.start, gap.stream)

    def _show(self, start: int, stream: Stream, until: int, data: bytes) -> None:
        if not data:
            return
        target = sys.stdout if stream is Stream.STDOUT else sys.stderr
        target.flush()
        self._shown.begin(start, stream, until, _position(target))
        raw = getattr(target, "buffer", None)
        if raw is None:  # somebody replaced the stream by one of text
            target.write(self._decoders[stream].decode(data))
        else:
            raw.write(data)
        target.flush()
        self._shown.end(start, stream, until)

    def _known(self, start: int, stream: Stream, data: bytes) -> int:
        """Tell how many of these bytes an attempt that was killed has shown without being able to say so."""
        key = (start, stream)
        if key not in self._doubted:
            doubt = self._shown.doubt(start, stream)
            length = doubt.until - self._shown.until(start, stream) if doubt else 0
            sys.stdout.flush()
            sys.stderr.flush()
            self._doubted[key] = self._captured(stream, doubt.position, length) if doubt else []
        logs = self._doubted[key]
        alike = [_length_alike(log, data) for log in logs]
        known = max(alike, default=0)
        # What comes next is in doubt only where the log has agreed so far and goes on.
        self._doubted[key] = [log[known:] for log, same in zip(logs, alike, strict=True) if same == len(data)]
        return known


def _length_alike(one: bytes, other: bytes) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _position(target: Any) -> int:
    """Tell how long the file behind a stream is; 0 when it is none."""
    try:
        status = os.fstat(target.fileno())
    except (OSError, ValueError, AttributeError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
