"""Counts jobs as they end: how they ended, how long they waited, how long they ran."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric

from slurmbus.board import Board
from slurmbus.history import ended_at, started_at
from slurmbus.picture import JobName
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import FINAL

BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 86400.0, 3 * 86400.0, 7 * 86400.0)
"""Seconds: from a test's second to a week in a queue."""
REMEMBERED = 50_000
"""Jobs that are known to be counted; whatever ended before one that isn't remembered any more isn't counted again."""


class JobTally:
    """Counts the jobs that end from now on; those that had ended before are never counted.

    What the bus still holds of older jobs says nothing about rates: it depends on when they are forgotten.

    Args:
        board: whose jobs.
        since: jobs that ended before are left out; by default now.
    """

    def __init__(self, board: Board, since: float | None = None) -> None:
        self._board = board
        self._since = time.time() if since is None else since
        self._counted: dict[JobName, float] = {}
        """When each ended that was counted, the first one counted first."""
        self._registry = CollectorRegistry(auto_describe=True)
        self._ended = Counter(
            "slurmbus_jobs_ended",
            "Jobs that have ended, by their final state.",
            ["site", "state"],
            registry=self._registry,
        )
        self._waited = Histogram(
            "slurmbus_job_queue_seconds",
            "How long jobs waited, from Slurm's yes to the start of the payload.",
            ["site"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._ran = Histogram(
            "slurmbus_job_run_seconds",
            "How long jobs ran, from the start of the payload to its end.",
            ["site"],
            buckets=BUCKETS,
            registry=self._registry,
        )

    async def run(self) -> None:
        """Count for ever."""
        async with self._board.subscribe() as news:
            while True:
                for name in await news.changed():
                    if isinstance(name, JobName):
                        self.look(name, self._board.picture.jobs.get(name))

    def look(self, name: JobName, record: Record | None) -> None:
        """Count a job if it has ended and hasn't been counted; None is one that was forgotten, and may come back."""
        end = ended_at(record) if record is not None else None
        if record is None or end is None or end < self._since or name in self._counted:
            return
        self._counted[name] = end
        if len(self._counted) > REMEMBERED:
            oldest = next(iter(self._counted))
            self._since = max(self._since, math.nextafter(self._counted.pop(oldest), math.inf))
        self._ended.labels(name.site, record.state.value).inc()
        start, submitted = started_at(record), record.timings.get("submitted", record.submit_time)
        if start is None:
            return
        self._ran.labels(name.site).observe(max(0.0, end - start))
        if submitted is not None and len(record.starts) <= 1:  # of a requeued job the last start says nothing
            self._waited.labels(name.site).observe(max(0.0, start - submitted))

    def collect(self) -> Iterator[Metric]:
        """Give what was counted, for each known site from 0: Prometheus sees no increase in what begins at 1."""
        for site in self._board.picture.sites():
            for state in FINAL:
                self._ended.labels(site, state.value)
            self._waited.labels(site)
            self._ran.labels(site)
        return iter(list(self._registry.collect()))
