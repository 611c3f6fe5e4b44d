"""The output of a program that runs in the payload's place: it passes through, looked at or rewritten."""

from __future__ import annotations

import os

from slurmbus_agent.runner.launch_lines import LONGEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmbus_agent.runner.launch_loop import Loop


class Output:
    """A pipe that a program writes into; what comes goes on to a descriptor."""

    def __init__(
        self,
        loop: Loop,
        to: int,
        *,
        see: Callable[[str], None] | None = None,
        rewrite: Callable[[str], str] | None = None,
    ) -> None:
        """Begin to pass on.

        Args:
            loop: of the launch.
            to: the descriptor that gets it.
            see: is told each whole line.
            rewrite: gives what goes on in a line's place. Then nothing goes on before its line is whole.
        """
        self._loop = loop
        self._to = to
        self._see = see
        self._rewrite = rewrite
        self._rest = b""
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        loop.add(self._reader, self._pass_on)

    def _pass_on(self) -> None:
        while True:
            try:
                data = os.read(self._reader, 65536)
            except BlockingIOError:
                return
            if not data:
                self._loop.remove(self._reader)
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._rewrite is None:
            _write(self._to, data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._line(line)
        if len(self._rest) > LONGEST:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "surrogateescape")
        if self._see is not None:
            self._see(text)
        if self._rewrite is not None:
            _write(self._to, self._rewrite(text).encode("utf-8", "surrogateescape") + b"\n")

    def finish(self) -> None:
        """Pass on what is left when the program has ended; what it left behind may still hold the pipe."""
        os.close(self.writer)
        if self._loop.has(self._reader):
            self._pass_on()
            self._loop.remove(self._reader)
        if self._rest:
            self._line(self._rest)
        os.close(self._reader)


def _write(to: int, data: bytes) -> None:
    while data:
        data = data[os.write(to, data) :]
