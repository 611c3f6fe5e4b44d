"""The trace of one ``run()``: what its jobs are told, and, where OpenTelemetry is installed, its spans."""

from __future__ import annotations

from typing import Self

from slurmbus_protocol import traces
from slurmbus_protocol.messages import Record, TraceContext


class Trace:
    """A trace that nobody records: its ids are the same for the same step, so that others can join in.

    A context manager around the call.

    Args:
        run_id: the Dagster run; all its jobs share one trace.
        step: the step's key.
    """

    def __init__(self, run_id: str, step: str) -> None:
        self.run_id = run_id
        self.step = step

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """End."""

    def context(self, call: str) -> TraceContext:
        """Give what a job of this call gets, as its parent.

        Args:
            call: tells the calls of a step apart.
        """
        return traces.derived(self.run_id, f"{self.step} {call}")

    def ended(self, record: Record) -> None:
        """Take what became of a job of this call."""


def of_call(run_id: str, step: str) -> Trace:
    """Give the trace of one call: a recorded one where OpenTelemetry's API is installed."""
    try:
        from dagster_slurmbus import spans  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        return Trace(run_id, step)
    return spans.RecordedTrace(run_id, step)
