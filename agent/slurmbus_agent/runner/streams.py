"""One stream of a start: its file, and how far it has gone over the link."""

from __future__ import annotations

import os
from contextlib import suppress

from slurmbus_agent.runner.lines import newest
from slurmbus_agent.runner.protocol import MAX_DATA, MESSAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_BYTES = 2 * MAX_DATA
"""Unacknowledged bytes under way: enough to keep a fast link busy, little enough for the agent's budget."""
WINDOW_CHUNKS = 8
"""Unacknowledged chunks under way: small ones wait and grow while the bus is busy."""
REST = 0.1
"""Seconds between two looks at a log that grows all the time; messages are looked at without rest."""
POLL = 0.05
"""Seconds between two looks at a file where inotify isn't to be had."""
NO_LIMIT = 1 << 63


class Stream:
    """A stream that is followed and sent; its bytes stay in the file, only offsets are kept here."""

    def __init__(self, name: str, path: str, writer: int) -> None:
        """Follow the file that was opened for writing as ``writer``."""
        self.name = name
        self.path = path
        self._writer = writer
        self._reader = os.open(path, os.O_RDONLY)
        self.acked = 0
        self.round = 0
        self._sent = 0
        self._under_way: list[int] = []
        self.idle = False
        """Nothing to do before the file changes."""
        self._rests_until = 0.0
        self._seen = 0
        self._ended = False
        self._doubtful = False
        self._limit = NO_LIMIT
        self._sample_bytes = 0
        self._sample_every = 0.0

    def size(self) -> int:
        """Give the stream's bytes: what is in the file, and never less than what the bus has."""
        with suppress(OSError):  # the file server is gone: what was seen last must do
            self._seen = os.fstat(self._reader).st_size
        return max(self._seen, self.acked)

    def reopen(self) -> None:
        """Ask the file server how far the file goes: another node may have written to it, and NFS asks at an open."""
        reader = os.open(self.path, os.O_RDONLY)
        os.close(self._reader)
        self._reader = reader

    def look_anyway(self) -> None:
        """Look although nothing was heard; what is new then comes from another node."""
        self._doubtful = self.idle
        self.idle = False

    def sync(self) -> None:
        """Make what is in the file durable, for readers on other hosts, too."""
        os.fsync(self._writer)

    def resume(self, offset: int) -> None:
        """Begin a connection: nothing is under way, go on at this offset."""
        self._limit = NO_LIMIT
        self._go_on(offset, 0)

    def sample_beyond(self, limit: int, most: int, every: float) -> None:
        """On this connection send only the newest lines beyond ``limit``: ``most`` bytes in ``every`` seconds."""
        self._limit, self._sample_bytes, self._sample_every = limit, most, every

    def acknowledge(self, end: int, following: int, number: int) -> None:
        """Take the agent's word that bytes are safe, or that it wants others."""
        if following == end:
            self.acked = end
            self._under_way = [one for one in self._under_way if one > end]
        else:
            self._go_on(following, number)
        self.idle = False

    def _go_on(self, offset: int, number: int) -> None:
        self._sent = self.acked = offset
        self._under_way.clear()
        self.round = number
        self.idle = False

    def finish(self) -> None:
        """The file doesn't grow any more: send all that is left without a rest."""
        self._ended = True
        self.idle = False
        self._rests_until = 0.0

    @property
    def owed(self) -> bool:
        """True while chunks are under way."""
        return bool(self._under_way)

    @property
    def _beyond(self) -> bool:
        """True when all that is wanted in full has been sent."""
        return self._sent >= self._limit

    def done(self) -> bool:
        """Tell whether every byte is safe; beyond its limit the end of a stream is read from the spool."""
        return self.acked >= self.size() or (self._beyond and self._ended and not self.owed)

    def due(self) -> float:
        """Give the time of the next look at the file, infinity when something else must happen first."""
        if self._beyond:
            full = self.owed or self._ended
        else:
            full = len(self._under_way) >= WINDOW_CHUNKS or self._sent - self.acked > WINDOW_BYTES - MAX_DATA
        return float("inf") if self.idle or full else self._rests_until

    def next_chunk(self, now: float, arm: Callable[[str], bool]) -> tuple[int, bytes] | None:
        """Give the next bytes to send, with their offset; None when there are none or too many are under way."""
        if now < self.due():
            return None
        armed = not self._ended and arm(self.path)  # before looking, so that no change falls in between
        size = os.fstat(self._reader).st_size
        if size > self._sent and self._doubtful:
            self.reopen()  # the bytes may be in an old cache as zeros that nobody wrote
        self._doubtful = False
        if self._beyond:
            return self._next_sample(now, size, armed)
        length = min(MAX_DATA, min(size, self._limit) - self._sent)
        data = os.pread(self._reader, length, self._sent) if length > 0 else b""
        if not data:
            self.idle = armed or self._ended
            self._rests_until = 0.0 if self.idle else now + POLL
            return None
        if len(data) < MAX_DATA and self.name != MESSAGES and not self._ended:
            self._rests_until = now + REST
        offset = self._sent
        self._sent += len(data)
        self._under_way.append(self._sent)
        return offset, data

    def _next_sample(self, now: float, size: int, armed: bool) -> tuple[int, bytes] | None:
        self._rests_until = now + self._sample_every
        begin = max(self._sent, size - self._sample_bytes)
        data = os.pread(self._reader, size - begin, begin) if size > begin else b""
        offset, data = newest(data, begin, self._sent, self._sample_bytes)
        if not data:
            self.idle = armed
            return None
        self._sent = offset + len(data)
        self._under_way.append(self._sent)
        return offset, data
