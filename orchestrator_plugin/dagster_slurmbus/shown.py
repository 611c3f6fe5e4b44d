"""How much of a job's output a run already shows, so that a later attempt in the same run doesn't show it again."""

from __future__ import annotations

import logging
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from slurmbus_protocol.subjects import Stream

log = logging.getLogger(__name__)

_SLOT = struct.Struct("<QQQ")
_STREAMS = tuple(Stream)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Bytes that were about to be shown when an earlier attempt was killed."""

    until: int
    position: int
    """Where in Dagster's captured log they went, if they did."""


class Shown:
    """A small file beside the run's other files: for each stream of each start, how many bytes were shown.

    Written before and after each piece. A process that is killed in between leaves a doubt about that one piece, and
    the log itself tells. Without the file (another machine without Dagster's storage) nothing counts as shown: rather
    twice than never.

    Args:
        path: of the file; made when something is shown. None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._slots: dict[tuple[int, Stream], tuple[int, Doubt | None]] = {}
        if path is not None:
            self._load(path)

    def until(self, start: int, stream: Stream) -> int:
        """Tell how many bytes are shown for certain."""
        return self._slots.get((start, stream), (0, None))[0]

    def doubt(self, start: int, stream: Stream) -> Doubt | None:
        """Tell about the bytes after those."""
        return self._slots.get((start, stream), (0, None))[1]

    def begin(self, start: int, stream: Stream, until: int, position: int = 0) -> None:
        """Bytes up to ``until`` are about to be shown."""
        self._write(start, stream, self.until(start, stream), Doubt(until, position))

    def end(self, start: int, stream: Stream, until: int) -> None:
        """Bytes up to ``until`` are shown; a doubt about bytes after those stays."""
        done, doubt = self.until(start, stream), self.doubt(start, stream)
        if doubt is not None:
            doubt = Doubt(doubt.until, doubt.position + until - done) if doubt.until > until else None
        self._write(start, stream, until, doubt)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _load(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError:
            return
        for number, (done, until, position) in enumerate(
            _SLOT.iter_unpack(data[: len(data) // _SLOT.size * _SLOT.size])
        ):
            start, stream = divmod(number, len(_STREAMS))
            self._slots[start, _STREAMS[stream]] = (done, Doubt(until, position) if until > done else None)

    def _write(self, start: int, stream: Stream, done: int, doubt: Doubt | None) -> None:
        self._slots[start, stream] = (done, doubt)
        if self._path is None:
            return
        number = start * len(_STREAMS) + _STREAMS.index(stream)
        data = _SLOT.pack(done, doubt.until if doubt else done, doubt.position if doubt else 0)
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._descriptor, data, number * _SLOT.size)
        except OSError as error:
            log.warning("what is shown can't be kept in %s: a later attempt shows it again (%s)", self._path, error)
            self._path = None
