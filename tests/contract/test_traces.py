"""Trace context from a Dagster step to its payload, by a real agent, with the real OpenTelemetry SDK."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from contract.agent_site import SITE, RealAgent, agent_site, shell
from contract.bus_site import BusSite, wait_until
from contract.test_launch import LIKE_RAY
from slurmbus.events import Output
from slurmbus_protocol import logs
from slurmbus_protocol.messages import JobSpec
from slurmbus_protocol.plans import RayPlan
from slurmbus_protocol.subjects import Stream
from slurmbus_protocol.traces import derived

WORKER = Path(__file__).parent / "payloads" / "traced.py"
Place = tuple[BusSite, RealAgent]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(logs.VARIABLE, "json")
        with agent_site(tmp_path_factory.mktemp("traces")) as found:
            yield found


def work(place: Place, how: str, **environment: str) -> dict[str, Any]:
    """Materialize the assets in a process of their own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(place[0].home.path), SITE, how],
        env={**plain, "DAGSTER_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")] or [done.stderr]
    return cast("dict[str, Any]", json.loads(line.removeprefix("FOUND ")))


def agents_lines(place: Place) -> list[dict[str, Any]]:
    lines = (place[1].folder / "agent.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


def ids(traceparent: str) -> tuple[str, str]:
    version, trace_id, span_id, flags = traceparent.strip().split("-")
    assert version == "00"
    assert int(flags, 16) & 1, "not sampled"
    return trace_id, span_id


@pytest.mark.parametrize("how", ["without", "unconfigured"])
def test_a_step_that_nobody_traces_has_a_trace_all_the_same(place: Place, how: str) -> None:
    found = work(place, how)
    trace_id, span_id = ids(found["one"])
    assert found["record"] == found["one"].strip()
    assert found["metadata"] == trace_id
    assert found["record"] == derived(found["run_id"], "one slurmbus:0").traceparent
    first, second = found["many"]
    assert first == second
    assert ids(first)[0] == trace_id
    assert ids(first)[1] != span_id
    said = [line for line in agents_lines(place) if line.get("job") == found["key"]]
    assert {line["trace_id"] for line in said} == {trace_id}
    assert any(line["message"].endswith("COMPLETED") for line in said)
    assert {(line["site"], line["level"]) for line in said} == {(SITE, "info")}
    assert all({"time", "level", "logger", "message", "site", "agent"} <= set(line) for line in agents_lines(place))


def test_spans_of_a_process_that_has_a_tracer_provider(place: Place) -> None:
    found = work(place, "memory")
    trace_id, span_id = ids(found["one"])
    spans = found["spans"]
    assert {span["context"]["trace_id"] for span in spans} == {f"0x{trace_id}"}
    (users,) = [span for span in spans if span["name"] == "the user's own"]
    calls = {span["attributes"]["dagster.step_key"]: span for span in spans if span["name"] == "slurmbus.run"}
    assert set(calls) == {"one", "many", "failing"}
    assert all(call["parent_id"] == users["context"]["span_id"] for call in calls.values())
    assert calls["one"]["context"]["span_id"] == f"0x{span_id}"
    assert calls["one"]["attributes"]["slurmbus.job.key"] == found["key"]
    below = {
        step: sorted(span["name"] for span in spans if span["parent_id"] == call["context"]["span_id"])
        for step, call in calls.items()
    }
    each = ["slurmbus.payload", "slurmbus.queue", "slurmbus.staging"]
    assert below == {"one": each, "failing": each, "many": sorted(each * 2)}
    payloads = [span for span in spans if span["name"] == "slurmbus.payload"]
    assert sorted(span["status"]["status_code"] for span in payloads) == ["ERROR", "UNSET", "UNSET", "UNSET"]
    assert sorted(span["attributes"]["process.exit.code"] for span in payloads) == [0, 0, 0, 3]
    assert calls["failing"]["status"]["status_code"] == "ERROR"
    assert all(span["start_time"] <= span["end_time"] for span in spans)


def test_spans_go_where_the_environment_says(place: Place) -> None:
    got: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            del words

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = work(place, "otlp", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    resources = [spans for request in got for spans in request.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    named = {attribute.key: attribute.value.string_value for attribute in resources[0].resource.attributes}
    assert named["service.name"] == "dagster"
    assert {span.trace_id.hex() for span in spans} == {ids(derived(found["run_id"], "").traceparent)[0]}
    assert sorted(span.name for span in spans if span.span_id.hex() == ids(found["one"])[1]) == ["slurmbus.run"]
    assert sum(span.name == "slurmbus.payload" for span in spans) == 3


def test_a_launched_payload_has_the_context_too(place: Place) -> None:
    client = place[0].client
    trace = derived("a run", "a step")
    plan = RayPlan(argv=("sh", "-c", "echo $TRACEPARENT"), python=LIKE_RAY, dashboard=False)
    key = client.submit(JobSpec(name="launched", plan=plan, trace=trace))
    with client.follow(key) as events:
        said = b"".join(event.data for event in events if isinstance(event, Output) and event.stream is Stream.STDOUT)
    assert trace.traceparent in said.decode()


def test_the_users_own_variable_goes_first(place: Place) -> None:
    client = place[0].client
    key = client.submit(shell("echo $TRACEPARENT", env={"TRACEPARENT": "mine"}, trace=derived("a", "b")))
    with client.follow(key) as events:
        said = b"".join(event.data for event in events if isinstance(event, Output))
    assert said == b"mine\n"
    wait_until(lambda: any(line.get("job") == key for line in agents_lines(place)), "the agent's line")
