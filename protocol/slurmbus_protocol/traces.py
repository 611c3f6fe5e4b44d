"""Trace context: how a job is found among the traces of who asked for it.

Source: W3C Trace Context, level 1, and OpenTelemetry's "Environment Variables as Context Propagation Carriers".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from slurmbus_protocol.messages import TraceContext

PARENT, STATE = "TRACEPARENT", "TRACESTATE"
_TRACE_LENGTH = 32
_SPAN_LENGTH = 16
_SAMPLED = "01"
"""What isn't sampled here isn't recorded by the payload either, whatever collects its spans."""


def derived(trace: str, span: str) -> TraceContext:
    """Give the context of something that nobody traces: the same for the same names, everywhere.

    Args:
        trace: names the trace: a run's id, say.
        span: names the span in it.
    """
    trace_id = hashlib.sha256(trace.encode()).hexdigest()[:_TRACE_LENGTH]
    span_id = hashlib.sha256(f"{trace}/{span}".encode()).hexdigest()[:_SPAN_LENGTH]
    return of_ids(trace_id, span_id)


def of_ids(trace_id: str, span_id: str, flags: str = _SAMPLED, state: str = "") -> TraceContext:
    """Put a context together from its parts, as hexadecimal digits."""
    return TraceContext(traceparent=f"00-{trace_id}-{span_id}-{flags}", tracestate=state)


def variables(trace: TraceContext | None) -> dict[str, str]:
    """Give the environment variables that carry a context."""
    if trace is None:
        return {}
    return {PARENT: trace.traceparent} | ({STATE: trace.tracestate} if trace.tracestate else {})


def from_variables(environment: Mapping[str, str]) -> TraceContext | None:
    """Read the context that this process was started in; None when there is none, or none that is valid."""
    found = {"traceparent": environment.get(PARENT, ""), "tracestate": environment.get(STATE, "")}
    try:
        trace = msgspec.convert(found, TraceContext)
    except msgspec.ValidationError:
        return None
    return trace if _is_valid(trace) else None


def trace_id(trace: TraceContext | None) -> str:
    """Give the trace's id; nothing when there is none."""
    return trace.traceparent.split("-")[1] if trace is not None else ""


def _is_valid(trace: TraceContext) -> bool:
    _, of_trace, of_span, _ = trace.traceparent.split("-")
    return of_trace.strip("0") != "" and of_span.strip("0") != ""
