"""A program in a terminal of its own, answered at its prompts as a person would."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

PATIENCE = 60.0


class Terminal:
    """A program that was started in a new terminal; `text` is all that it showed."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        # setsid makes the terminal the program's controlling one: ssh asks on /dev/tty, not on its standard input.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        os.close(slave)
        self._seen = 0
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Without its terminal the program gets SIGHUP.
        os.close(self._master)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def expect(self, pattern: str, patience: float = PATIENCE) -> str:
        """Wait until the program shows this after what was expected before, and return what matched."""
        deadline = time.monotonic() + patience
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            assert self._read(deadline), f"{pattern!r} isn't in what was shown:\n{self.text[self._seen :]}"
        self._seen = found.end()
        return found.group()

    def say(self, line: str) -> None:
        """Type a line."""
        os.write(self._master, f"{line}\n".encode())

    def answer(self, pattern: str, line: str) -> None:
        """Type a line when the program asks for it."""
        self.expect(pattern)
        self.say(line)

    def end(self, patience: float = PATIENCE) -> int:
        """Wait until the program has ended and return its exit code."""
        deadline = time.monotonic() + patience
        while self._read(deadline):
            pass
        return self._process.wait(max(1.0, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Read what comes next; false when nothing comes any more."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        data = b""
        if ready:
            with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
                data = os.read(self._master, 65536)
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
