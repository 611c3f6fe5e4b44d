"""Keys that a person presses in a terminal, one by one."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b": "escape",
}
_KEY = re.compile(rb"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Z])?|[^\x1b]")
"""Source: console_codes(4)."""


@contextmanager
def keys() -> Iterator[asyncio.Queue[str]]:
    """Give a queue of the keys that are pressed: letters, or names such as ``up``; ``end`` when no more can come."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def pressed() -> None:
        data = os.read(terminal, 1024)  # what a key sends comes in one piece
        if not data:
            loop.remove_reader(terminal)
            queue.put_nowait("end")
        for key in _KEY.findall(data):
            queue.put_nowait(_NAMES.get(key, key.decode(errors="ignore")))

    tty.setcbreak(terminal)
    loop.add_reader(terminal, pressed)
    try:
        yield queue
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
