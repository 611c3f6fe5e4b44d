"""Materializes assets in a process of its own, and prints what became of their traces: ``traced.py HOME SITE HOW``."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import json
import sys

import dagster as dg

HOME, SITE, HOW = sys.argv[1:]
if HOW == "without":
    sys.modules["opentelemetry"] = None  # as where the extra isn't installed

from dagster_slurmbus import BusResource, PipesSlurmClient  # noqa: E402 - now without it

COMMAND = ["sh", "-c", 'echo "$TRACEPARENT $TRACESTATE" > trace.txt; sleep 0.1']
FAILING = ["sh", "-c", "exit 3"]
found = {}


def traces_of(outputs):
    return outputs["trace.txt"].read_text().strip()


@dg.asset
def one(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    done = slurm.run(context=context, command=COMMAND, outputs=["trace.txt"])
    found["run_id"] = context.run_id
    found["one"] = traces_of(done.outputs)
    found["key"] = done.record.key
    found["record"] = done.record.trace.traceparent
    found["metadata"] = done.metadata["slurmbus/trace_id"].value
    return done.get_materialize_result()


@dg.asset
def many(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    done = slurm.run_array(context=context, command=COMMAND, tasks=["a", "b"], outputs=["trace.txt"])
    found["many"] = [traces_of(task.outputs) for task in done.tasks]
    return done.get_materialize_result()


@dg.asset
def failing(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    slurm.run(context=context, command=FAILING)


def materialize(*assets):
    client = PipesSlurmClient(site=SITE, bus=BusResource(home=HOME))
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize(list(assets), instance=instance, resources={"slurm": client}, raise_on_error=False)


def in_memory():
    """With a tracer provider of the process's own, and a span around the run."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with trace.get_tracer("the user's").start_as_current_span("the user's own"):
        materialize(one, many, failing)
    found["spans"] = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]


if HOW == "memory":
    in_memory()
else:
    materialize(one, many)
print("FOUND", json.dumps(found))
