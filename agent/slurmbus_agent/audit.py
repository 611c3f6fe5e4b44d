"""The append-only log of every request and what came of it: one JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)


class Audit:
    """Appends to a file that only its owner can read; a line is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem: str | None = None
        """Why nothing can be written at present; shown as an alarm in the heartbeat."""

    def write(self, what: str, **fields: object) -> None:
        """Note one event. A full disk stops no job; it is an alarm until writing works again."""
        line = json.dumps({"time": time.time(), "what": what, **fields}, separators=(",", ":"), default=str)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            self.problem = f"the audit log can't be written: {error.strerror}"
            log.error("%s; not noted: %s", self.problem, line)  # noqa: TRY400  # the reason is in the words
        else:
            self.problem = None
