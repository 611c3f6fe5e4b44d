"""What the runner reports durably in the spool, for an agent without a link to it."""

from __future__ import annotations

import json
import os
import time

from slurmbus_agent.runner.trouble import spool_trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slurmbus_agent.runner.streams import Stream

SOONEST = 2.0
"""Seconds between two reports while the output grows and there is no link."""
LATEST = 10.0
"""The same when it has gone on for long: each report costs the file server some calls."""


class Report:
    """The report of one start, ``<n>.report``."""

    def __init__(self, folder: str, identity: dict[str, Any], streams: list[Stream]) -> None:
        self._path = f"{folder}/{identity['start']}.report"
        self._fixed = {name: identity[name] for name in ("start", "job_id", "node", "nonce")}
        self._streams = streams
        self._interval = SOONEST
        self._said: object = None
        self.started_at: float | None = None
        self.live: dict[str, Any] | None = None
        self.facts: dict[str, str] = {}
        self.due: float | None = None

    def begin(self, now: float, delay: float = 0.0) -> None:
        """Report from now on."""
        if self.due is None:
            self._interval = SOONEST
            self.due = now + delay

    def stop(self) -> None:
        """Let the link report."""
        self.due = None

    def work(self, now: float) -> None:
        """Report if it is time and there is news. An error is no reason to disturb the payload: it is tried again."""
        if self.due is None or now < self.due:
            return
        self.due = now + self._interval
        self._interval = min(self._interval * 1.25, LATEST)
        sizes = {stream.name: stream.size() for stream in self._streams}
        if (sizes, self.live, self.facts) != self._said:
            try:
                self._sync()
                self._write(sizes, None)
            except OSError:
                return
            self._said = (sizes, self.live, self.facts)

    def finish(self, end: dict[str, Any]) -> None:
        """Report the end; when the spool doesn't take it, ``end`` says so for the link."""
        try:
            self._sync()
        except OSError as error:
            _blame(end, error)
        try:
            self._write(end["sizes"], end)
        except OSError as error:
            _blame(end, error)

    def _sync(self) -> None:
        for stream in self._streams:
            if stream.size():
                stream.sync()

    def _write(self, sizes: dict[str, int], end: dict[str, Any] | None) -> None:
        content = {
            **self._fixed,
            "reported_at": time.time(),
            "sizes": sizes,
            "started_at": self.started_at,
            "live": self.live,
            "facts": self.facts,
            "end": end,
        }
        new = self._path + ".new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(json.dumps(content).encode())
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self._path)


def _blame(end: dict[str, Any], error: OSError) -> None:
    if not end["error"]:
        end["error"], end["error_code"] = spool_trouble(error)
