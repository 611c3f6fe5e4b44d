"""What comes out of a pipe, line by line, and the last lines of it."""

from __future__ import annotations

import os
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TAIL = 30
"""Lines that are kept to explain a failure."""
LONGEST = 16 * 1024
"""Bytes after which a line is taken for complete."""


def how_it_ended(exit_code: int) -> str:
    """Say in words how a program ended: its exit code, or minus the signal."""
    return f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"


def pieces(descriptor: int) -> Iterator[bytes]:
    """Give what a pipe that doesn't block has now, piece by piece; an empty piece is its end."""
    while True:
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        yield data
        if not data:
            return


class Lines:
    """The reading end of a pipe; ``hear`` gets each whole line without its newline."""

    def __init__(self, descriptor: int, hear: Callable[[str], None] | None = None) -> None:
        self.descriptor = descriptor
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._hear = hear
        self._rest = b""
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Take what there is; False at the end, when the pipe is closed."""
        for data in pieces(self.descriptor):
            if not data:
                if self._rest:
                    self._take(self._rest)
                os.close(self.descriptor)
                return False
            *whole, self._rest = (self._rest + data).split(b"\n")
            for line in whole:
                self._take(line)
            if len(self._rest) > LONGEST:
                self._take(self._rest)
                self._rest = b""
        return True

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "surrogateescape")
        self.tail.append(text)
        if self._hear is not None:
            self._hear(text)
