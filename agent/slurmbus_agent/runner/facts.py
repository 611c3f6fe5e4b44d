"""What the launcher has found out, for people: the file ``<n>.facts``, a JSON object of texts."""

from __future__ import annotations

import json
import os

MOST = 32
"""Entries; each is part of the job's record."""
LONGEST_NAME = 64
LONGEST = 1000
"""Characters of a value."""
_LARGEST = 256 * 1024


class Facts:
    """The facts of one start."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.known: dict[str, str] = {}
        self._stamp: tuple[int, int] | None = None

    def look(self) -> bool:
        """Read the file when it is another one than the last time; True when it says something new."""
        try:
            status = os.stat(self.path)
            stamp = (status.st_ino, status.st_mtime_ns)
            if stamp == self._stamp or status.st_size > _LARGEST:
                return False
            with open(self.path, "rb") as file:
                found = kept(json.loads(file.read()))
        except (OSError, ValueError):  # there is none yet, or it isn't JSON
            return False
        self._stamp = stamp
        if found == self.known:
            return False
        self.known = found
        return True


def kept(content: object) -> dict[str, str]:
    """Give the entries that are texts and short enough, as many as are taken."""
    if not isinstance(content, dict):
        return {}
    fitting = {
        name: value
        for name, value in content.items()
        if isinstance(value, str) and 0 < len(name) <= LONGEST_NAME and len(value) <= LONGEST
    }
    return dict(list(fitting.items())[:MOST])
