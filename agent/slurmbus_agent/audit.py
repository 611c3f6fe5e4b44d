"""The append-only log of every request and what came of it: one JSON object a line.

When the file has grown to its limit it gets another name and a new one begins; whoever still writes to the old one at
that moment loses nothing. The oldest files go when there are too many.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from slurmbus_agent import budgets

log = logging.getLogger(__name__)


class Audit:
    """Appends to a file that only its owner can read; a line is written whole or not at all.

    Args:
        path: the file that is written to; older ones lie beside it.
        limit: bytes of one file.
        kept: how many full files are kept.
    """

    def __init__(self, path: Path, limit: int = budgets.AUDIT_BYTES, kept: int = budgets.AUDIT_FILES) -> None:
        self._path = path
        self._limit = limit
        self._kept = kept
        self.problem: str | None = None
        """Why nothing can be written at present; shown as an alarm in the heartbeat."""

    def write(self, what: str, **fields: object) -> None:
        """Note one event. A full disk stops no job; it is an alarm until writing works again."""
        line = json.dumps({"time": time.time(), "what": what, **fields}, separators=(",", ":"), default=str)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode() + b"\n")
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if size >= self._limit:
                self._rotate()
        except OSError as error:
            self.problem = f"the audit log can't be written: {error.strerror}"
            log.error("%s; not noted: %s", self.problem, line)  # noqa: TRY400  # the reason is in the words
        else:
            self.problem = None

    def _rotate(self) -> None:
        seconds, rest = divmod(time.time_ns(), 10**9)
        stem = f"{self._path.stem}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{rest:09}"
        with contextlib.suppress(FileNotFoundError):  # another agent of the site was faster
            self._path.rename(self._path.with_name(f"{stem}-{secrets.token_hex(4)}{self._path.suffix}"))
        for old in _full(self._path)[: -self._kept]:
            old.unlink(missing_ok=True)


def _full(path: Path) -> list[Path]:
    """Give the files that are full, the oldest first."""
    return sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))


def lines(path: Path) -> Iterator[dict[str, object]]:
    """Give what was noted, the oldest first; a line that was cut off by a full disk is left out."""
    for file in (*_full(path), path):
        with contextlib.suppress(FileNotFoundError), file.open(errors="replace") as opened:
            for line in opened:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)
