"""The append-only log of every request and what came of it: one JSON object a line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


class Audit:
    """Appends to a file that only its owner can read; a line is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, what: str, **fields: object) -> None:
        """Note one event; a full disk is told to the caller as OSError."""
        line = json.dumps({"time": time.time(), "what": what, **fields}, separators=(",", ":"), default=str)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
