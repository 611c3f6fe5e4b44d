"""What crosses the session with the helper on the login node: lines of 7-bit text (pure).

A frame towards the helper is a JSON object on a line. One from it begins with a mark: two signs and a nonce of this
session, so that banners, prompts and login shells that talk aren't taken for one, nor is the echo of a terminal, for
what is typed never holds the mark in one piece.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

SIGN = "@@"
BYE = b"bye\n"
"""The last line towards the helper."""
LONGEST_TYPED = 2000
"""Bytes of what is typed into a terminal: canonical input takes 4095. Source: termios(3)."""
PYTHONS = (
    *("python3", "/usr/bin/python3", "/usr/libexec/platform-python"),
    *(f"python3.{minor}" for minor in range(14, 5, -1)),
    *("/usr/local/bin/python3", "python"),
)
_FEED = "import os;exec(bytes().join(iter(lambda:os.read(0,1),bytes(1))))"
"""Reads a program from standard input up to a zero byte, and not a byte further."""


def new_nonce() -> str:
    """Give a word that nobody else prints."""
    return secrets.token_hex(8)


def starter(nonce: str, python: str | None = None) -> str:
    """Give the command that finds a Python and lets it run what is fed to it.

    It is one line without quotes, backslashes or exclamation marks inside its single quotes, so that every login shell
    (also csh and fish) passes it on as it is.

    Args:
        nonce: of this session.
        python: tried before all others.
    """
    candidates = " ".join(([python] if python else []) + list(PYTHONS))
    test = '"$p" -c "import sys;sys.exit(sys.version_info<(3,6))" </dev/null >/dev/null 2>&1'
    start = f'exec "$p" -c "{_FEED}"'
    body = (
        "stty raw -echo 2>/dev/null; "
        f'for p in {candidates}; do if {test}; then echo {SIGN}"{nonce}" feed; {start}; fi; done; '
        f'echo {SIGN}"{nonce}" nopython'
    )
    return f"exec /bin/sh -c '{body}'"


def program(source: str, nonce: str) -> bytes:
    """Give what is fed: the helper and the call that starts it, up to a zero byte."""
    return f"{source}\nmain({SIGN!r} + {nonce!r})\n".encode() + b"\0"


def request(number: int, op: str, arguments: dict[str, Any]) -> bytes:
    """Encode a request to the helper."""
    return json.dumps({**arguments, "id": number, "op": op}).encode("ascii") + b"\n"


class Scanner:
    """Finds the frames in what comes, and keeps the rest as noise.

    Args:
        nonce: of this session.
    """

    def __init__(self, nonce: str) -> None:
        self._mark = (SIGN + nonce).encode()
        self._rest = b""
        self.noise = b""
        """The end of what was no frame: what a person may want to read when no frame comes."""

    def feed(self, data: bytes) -> list[str]:
        """Take bytes, and give the text of the frames that are whole now."""
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        frames = []
        for line in lines:
            before, mark, after = line.partition(self._mark)
            if mark:
                frames.append(after.decode("ascii", "replace").strip())
            self.noise = (self.noise + before + (b"" if mark else b"\n"))[-4000:]
        return frames

    @property
    def words(self) -> str:
        """The noise as text, with what came after the last line."""
        text = (self.noise + self._rest).decode("utf-8", "replace")
        return "".join(letter for letter in text if letter.isprintable() or letter == "\n").strip()
