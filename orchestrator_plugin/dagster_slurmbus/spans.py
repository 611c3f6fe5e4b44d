"""OpenTelemetry spans of a ``run()``: the call itself, and of each job staging, waiting in the queue, and the payload.

What is recorded, and where it goes, is OpenTelemetry's own configuration: a tracer provider that the process has
already, else the standard ``OTEL_…`` variables. Times of a job are its agent's and its node's clocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from importlib.metadata import entry_points, version
from typing import Any, Self

from opentelemetry import trace as otel
from opentelemetry.trace import SpanKind, Status, StatusCode

from dagster_slurmbus.outcomes import succeeded
from dagster_slurmbus.tracing import Trace
from slurmbus_protocol import traces
from slurmbus_protocol.messages import Record, Start, TraceContext

log = logging.getLogger(__name__)

NAME = "slurmbus"
FLUSH_MILLISECONDS = 2000
"""How long the end of a call waits for a collector: step processes end without running exit handlers."""
_NANOSECONDS = 1_000_000_000
_LONGEST_STATE = 512
_EXPORTERS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}

_trace_id: ContextVar[int | None] = ContextVar("slurmbus_trace_id", default=None)


class RecordedTrace(Trace):
    """One call's span, if anybody records it, and those of its jobs."""

    def __enter__(self) -> Self:
        """Begin the call's span, below the one that is current."""
        wanted = _trace_id.set(int(traces.trace_id(super().context("")), 16))
        try:
            self._span = _tracer().start_span(
                "slurmbus.run",
                kind=SpanKind.CLIENT,
                attributes={"dagster.run_id": self.run_id, "dagster.step_key": self.step},
            )
        finally:
            _trace_id.reset(wanted)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(otel.use_span(self._span, end_on_exit=True))
        return self

    def __exit__(self, *error: object) -> None:
        """End the call's span, and bring everything to the collector."""
        self._stack.__exit__(*error)  # type: ignore[arg-type]  # what Python gives it
        flush = getattr(_provider(), "force_flush", None)
        if flush is not None and self._span.get_span_context().is_valid:
            flush(FLUSH_MILLISECONDS)

    def context(self, call: str) -> TraceContext:
        """Give the call's span as a parent; without one, ids that are the same for the same step."""
        span = self._span.get_span_context()
        if not span.is_valid:
            return super().context(call)
        state = span.trace_state.to_header()
        return traces.of_ids(
            otel.format_trace_id(span.trace_id),
            otel.format_span_id(span.span_id),
            f"{span.trace_flags:02x}",
            state if len(state) <= _LONGEST_STATE else "",
        )

    def ended(self, record: Record) -> None:
        """Record the spans of a job, below the span that it was given as its parent."""
        if not self._span.is_recording():
            return
        attributes = _attributes(record)
        self._span.set_attributes(attributes)
        parent = otel.set_span_in_context(_remote(record.trace) if record.trace is not None else self._span)
        if traces.trace_id(record.trace) not in {"", otel.format_trace_id(self._span.get_span_context().trace_id)}:
            self._span.add_link(otel.get_current_span(parent).get_span_context())  # of an earlier attempt
        for name, begun, ended, more in _phases(record):
            span = _tracer().start_span(
                name, context=parent, start_time=_nanoseconds(begun), attributes={**attributes, **more}
            )
            if name == "slurmbus.payload" and not succeeded(record):
                span.set_status(Status(StatusCode.ERROR, record.reason or record.state.value))
            span.end(_nanoseconds(max(begun, ended)))


def _phases(record: Record) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    """Give the parts of a job's life that are known: name, begin, end, and what there is to say of each."""
    timings = record.timings
    if "accepted" in timings and "staged" in timings:
        yield "slurmbus.staging", timings["accepted"], timings["staged"], {}
    waiting = timings.get("submitted")
    for start in record.starts:
        if start.started_at is None:
            continue
        about = {"slurmbus.start": start.number, "host.name": start.node}
        if waiting is not None:
            yield "slurmbus.queue", waiting, start.started_at, about
        if start.ended_at is not None:
            yield "slurmbus.payload", start.started_at, start.ended_at, {**about, **_end_of(start)}
        waiting = start.ended_at


def _end_of(start: Start) -> dict[str, Any]:
    known = {"process.exit.code": start.exit_code, "slurmbus.signal": start.signal}
    return {name: value for name, value in known.items() if value is not None}


def _attributes(record: Record) -> dict[str, Any]:
    known = {
        "slurmbus.site": record.site,
        "slurmbus.job.key": record.key,
        "slurmbus.job.state": record.state.value,
        "slurmbus.task": record.task if record.tasks else None,
        "slurm.job.id": record.job_id,
        "slurm.partition": record.partition,
    }
    return {name: value for name, value in known.items() if value is not None}


def _remote(context: TraceContext) -> otel.Span:
    """Give a span that somebody else records."""
    _, trace_id, span_id, flags = context.traceparent.split("-")
    return otel.NonRecordingSpan(
        otel.SpanContext(
            int(trace_id, 16),
            int(span_id, 16),
            is_remote=True,
            trace_flags=otel.TraceFlags(int(flags, 16)),
            trace_state=otel.TraceState.from_header([context.tracestate]),
        )
    )


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)


# ---------------------------------------------------------------------- where spans go


def _tracer() -> otel.Tracer:
    return _provider().get_tracer(NAME, version("dagster-slurmbus"))


def _provider() -> otel.TracerProvider:
    """Give the process's own provider where it has one, else the one that the environment asks for."""
    provider = otel.get_tracer_provider()
    if isinstance(provider, otel.ProxyTracerProvider):  # nobody has set one
        return _own_provider() or provider
    return provider


@cache
def _own_provider() -> otel.TracerProvider | None:
    """Make a provider as the ``OTEL_…`` variables say; None when they ask for nothing, or it isn't installed."""
    kind = _exporter_name()
    if not kind:
        return None
    exporter = next(iter(entry_points(group="opentelemetry_traces_exporter", name=kind)), None)
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
    except ModuleNotFoundError:
        exporter = None
    if exporter is None:
        log.warning("OTEL_… variables ask for traces by %s, which isn't installed: 'dagster-slurmbus[otel]' is", kind)
        return None

    class _RunIds(RandomIdGenerator):
        """Lets all steps of a Dagster run share one trace."""

        def generate_trace_id(self) -> int:
            return _trace_id.get() or super().generate_trace_id()

    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "dagster"})
    provider = TracerProvider(resource=resource, id_generator=_RunIds())
    provider.add_span_processor(BatchSpanProcessor(exporter.load()()))
    return provider


def _exporter_name() -> str:
    """Give the name of the exporter that the environment asks for.

    Source: OpenTelemetry, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter".
    """
    settings = os.environ
    if settings.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    asked = settings.get("OTEL_TRACES_EXPORTER", "").partition(",")[0].strip()
    wanted = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} & set(settings)
    if asked == "none" or not (asked or wanted):
        return ""
    if asked not in {"", "otlp"}:
        return asked
    protocol = settings.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or settings.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return _EXPORTERS.get(protocol or "", "otlp_proto_http")
