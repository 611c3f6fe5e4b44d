"""Metrics: what stands in them, that Prometheus reads them, and that the dashboard for Grafana names no others."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from slurmbus import job_tally
from slurmbus.board import Board
from slurmbus.home import Home
from slurmbus.metrics import AGENT_FIGURES, Metrics
from slurmbus.picture import AgentName, BusView, JobName, Picture
from slurmbus_protocol.messages import BudgetUse, Heartbeat, Record, SchedulerHealth, Start, Vitals
from slurmbus_protocol.states import JobState

GRAFANA = Path(__file__).parents[2] / "docs" / "grafana" / "slurmbus.json"
KEY = "01JD000000000000000000000"
WHO = {"site": "alice", "agent": "login-1"}


def beat(agent_id: str = "login-1", **changes: Any) -> Heartbeat:
    fields: dict[str, Any] = {
        "site": "alice",
        "agent_id": agent_id,
        "epoch": 3,
        "leader": True,
        "interval": 2.0,
        "lease_seconds": 6.0,
        "host": "login01",
        "user": 'al"ice\\',
        "pid": 1,
        "version": "1.0",
        "protocol": (1, 1),
        "capabilities": (),
        "started_at": 50.0,
        "sent_at": 100.0,
        "alarms": ("the bus takes no more LOGS",),
        "scheduler": SchedulerHealth(
            kind="native", responding=True, since=0.0, latency=0.002, calls={"jobs": 7, "submit": 2}, version="26.05"
        ),
        "vitals": Vitals(
            cpu_seconds=12.5,
            rss=40_000_000,
            open_files=17,
            jobs={"RUNNING": 2},
            backlog=5,
            bus_latency=0.25,
            budgets=(BudgetUse(name="cpu-time", used=3.0, limit=6.0, unit="s"),),
            slowed="CPU time",
        ),
    }
    return Heartbeat(**{**fields, **changes})


def job(number: int, state: JobState, **fields: Any) -> Record:
    now = time.time()
    return Record(
        key=f"{KEY}{number}",
        site="alice",
        epoch=1,
        state=state,
        name="job",
        submitter="me",
        created_at=now,
        updated_at=now,
        **fields,
    )


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(Home(tmp_path))


def filled(picture: Picture) -> None:
    now = time.time()
    picture.set_bus(BusView("this home's server", ("alice", "bob"), reachable=True, round_trip=0.001))
    picture.take_heartbeat("this home's server", beat(), now, lease=True)
    picture.take_heartbeat("this home's server", beat("login-2", leader=False), now, lease=False)
    picture.take_heartbeat("this home's server", beat("gone", leader=False), now - 100, lease=False)
    picture.take_record("this home's server", job(1, JobState.RUNNING))
    picture.take_record("this home's server", job(2, JobState.FAILED))


def samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def value(page: bytes, name: str, **labels: str) -> float | None:
    return samples(page).get((f"slurmbus_{name}", frozenset(labels.items())))


def test_what_a_picture_holds_stands_in_the_metrics(board: Board) -> None:
    filled(board.picture)
    content_type, page = Metrics(board).page()
    assert content_type.startswith("text/plain")
    assert value(page, "bus_up", bus="this home's server") == 1
    assert value(page, "site_up", site="alice") == 1
    assert value(page, "site_up", site="bob") == 0
    assert value(page, "jobs", site="alice", state="RUNNING") == 1
    assert value(page, "jobs", site="alice", state="FAILED") == 1
    assert value(page, "agent_up", **WHO) == 1
    assert value(page, "agent_leader", **WHO) == 1
    assert value(page, "agent_leader", site="alice", agent="login-2") == 0
    assert value(page, "agent_up", site="alice", agent="gone") is None, "an older agent's id"
    assert value(page, "agent_cpu_seconds_total", **WHO) == 12.5
    assert value(page, "agent_resident_memory_bytes", **WHO) == 40_000_000
    assert value(page, "agent_open_files", **WHO) == 17
    assert value(page, "agent_budget_used_ratio", **WHO, budget="cpu-time") == 0.5
    assert value(page, "agent_alarms", **WHO) == 1
    assert value(page, "agent_slowed", **WHO) == 1
    assert value(page, "scheduler_up", **WHO) == 1
    assert value(page, "scheduler_calls_total", **WHO, call="jobs") == 7
    info = [dict(labels) for (name, labels) in samples(page) if name == "slurmbus_agent_info"]
    assert {"host": "login01", "user": 'al"ice\\', "scheduler_version": "26.05", **WHO}.items() <= info[0].items()


def test_a_site_that_was_removed_is_not_down(board: Board) -> None:
    filled(board.picture)
    bus = "this home's server"
    board.picture.set_bus(BusView(bus, ("bob",), reachable=True))
    board.picture.keep_agents(bus, set())
    _, page = Metrics(board).page()
    assert value(page, "jobs", site="alice", state="FAILED") == 1
    assert value(page, "site_up", site="alice") is None
    assert value(page, "site_up", site="bob") == 0


def test_an_agent_that_is_silent_has_no_old_figures(board: Board) -> None:
    board.picture.take_heartbeat("bus", beat(), time.time() - 100, lease=True)
    _, page = Metrics(board).page()
    assert value(page, "agent_up", **WHO) == 0
    assert value(page, "site_up", site="alice") == 0
    assert (value(page, "agent_heartbeat_age_seconds", **WHO) or 0) >= 100
    assert value(page, "agent_cpu_seconds_total", **WHO) is None


def test_whether_a_scheduler_is_up_is_left_open_until_it_was_asked(board: Board) -> None:
    health = SchedulerHealth(kind="native", responding=False, asked=False, since=0.0)
    board.picture.take_heartbeat("bus", beat(scheduler=health), time.time(), lease=True)
    _, page = Metrics(board).page()
    assert value(page, "scheduler_up", **WHO) is None
    assert value(page, "agent_open_files", **WHO) is not None


def test_every_figure_of_a_heartbeat_can_be_read(board: Board) -> None:
    new = beat(vitals=Vitals(), scheduler=SchedulerHealth(kind="local", responding=True, since=0.0))
    board.picture.take_heartbeat("bus", new, time.time(), lease=True)
    _, page = Metrics(board).page("application/openmetrics-text; version=1.0.0")
    assert page.endswith(b"# EOF\n")
    assert len({figure.name for figure in AGENT_FIGURES}) == len(AGENT_FIGURES)
    assert AgentName("alice", "login-1") in board.picture.agents


def test_jobs_are_counted_once_and_only_when_they_end_from_now_on(board: Board) -> None:
    metrics = Metrics(board)
    now = time.time()
    before = job(1, JobState.COMPLETED, end_time=now - 60)
    start = Start(number=0, job_id=1, node="c1", nonce="n", started_at=now + 10)
    ended = job(2, JobState.COMPLETED, starts=(start,), end_time=now + 12, timings={"submitted": now + 3})
    cancelled = job(3, JobState.CANCELLED, end_time=now + 1)
    for record in (before, ended, ended, cancelled):
        metrics.tally.look(JobName("alice", record.key, 0), record)
    _, page = metrics.page()
    assert value(page, "jobs_ended_total", site="alice", state="COMPLETED") == 1
    assert value(page, "jobs_ended_total", site="alice", state="CANCELLED") == 1
    assert value(page, "job_run_seconds_count", site="alice") == 1
    assert value(page, "job_run_seconds_sum", site="alice") == pytest.approx(2.0)
    assert value(page, "job_queue_seconds_sum", site="alice") == pytest.approx(7.0)
    assert value(page, "job_queue_seconds_bucket", site="alice", le="5.0") == 0
    assert value(page, "job_queue_seconds_bucket", site="alice", le="15.0") == 1


def test_a_job_that_was_gone_and_comes_back_is_counted_once(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_tally, "REMEMBERED", 2)
    metrics = Metrics(board)
    jobs = [job(number, JobState.COMPLETED, end_time=time.time() + number) for number in (1, 2, 3, 4)]
    for _ in range(2):  # the bus was away in between, or is another one
        for record in jobs:
            metrics.tally.look(JobName("alice", record.key, 0), record)
        for record in jobs:
            metrics.tally.look(JobName("alice", record.key, 0), None)
    assert value(metrics.page()[1], "jobs_ended_total", site="alice", state="COMPLETED") == 4


def test_a_board_brings_the_jobs_to_the_tally(board: Board) -> None:
    metrics = Metrics(board)

    async def count() -> None:
        counting = asyncio.create_task(metrics.run())
        await asyncio.sleep(0)
        board._tell(board.picture.take_record("bus", job(1, JobState.COMPLETED, end_time=time.time() + 1)))
        async with asyncio.timeout(10):
            while value(metrics.page()[1], "jobs_ended_total", site="alice", state="COMPLETED") != 1:
                await asyncio.sleep(0.001)
        counting.cancel()

    asyncio.run(count())


# ------------------------------------------------------------------ Prometheus and Grafana


def all_of_it(board: Board) -> bytes:
    """Metrics in which every family has a sample."""
    filled(board.picture)
    metrics = Metrics(board)
    for record in board.picture.jobs.values():
        metrics.tally.look(JobName("alice", record.key, 0), record)
    start = Start(number=0, job_id=1, node="c1", nonce="n", started_at=time.time())
    done = job(
        5, JobState.COMPLETED, starts=(start,), timings={"submitted": start.started_at or 0.0}, end_time=time.time() + 1
    )
    metrics.tally.look(JobName("alice", done.key, 0), done)
    return metrics.page()[1]


def test_names_and_types_are_as_prometheus_wants_them(board: Board) -> None:
    page = all_of_it(board)
    families = list(text_string_to_metric_families(page.decode()))
    for family in families:
        assert family.name.startswith("slurmbus_"), family.name
        assert family.documentation, family.name
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)$", family.name), "base units only"
    promtool = shutil.which("promtool")  # of Prometheus itself, where it is installed
    if promtool is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def expressions(value: Any) -> Iterator[str]:
    """Give every query of the dashboard, wherever it stands."""
    if isinstance(value, dict):
        yield from (found for name, found in value.items() if name in {"expr", "definition"})
        for inner in value.values():
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


def test_the_dashboard_names_only_metrics_and_labels_that_exist(board: Board) -> None:
    there: dict[str, set[str]] = {}
    for name, labels in samples(all_of_it(board)):
        there.setdefault(name, set()).update(name for name, _ in labels)
    for figure in AGENT_FIGURES:
        there.setdefault(f"slurmbus_{figure.name}", {"site", "agent", *figure.labels})
    dashboard = json.loads(GRAFANA.read_text())
    queries = list(expressions(dashboard))
    assert len(queries) > 20
    for query in queries:
        named = re.findall(r"(slurmbus_\w+)(?:\{([^}]*)\})?", query)
        assert named, query
        for name, selector in named:
            assert name in there, query
            asked = set(re.findall(r"(\w+)\s*=~?", selector)) | grouped(query)
            assert asked <= there[name] | {"le"}, query
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    """Recording rules are a list of queries; ``promtool`` reads them where it is installed."""
    queries = [query for query in expressions(json.loads(GRAFANA.read_text())) if not query.startswith("label_values")]
    plain = [query.replace("$site", ".*").replace("$__rate_interval", "5m") for query in queries]
    assert not [query for query in plain if "$" in query]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(plain)]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{len(plain)} rules found" in done.stdout


def grouped(query: str) -> set[str]:
    return {name.strip() for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(",")}


def test_no_panel_covers_another_one() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(GRAFANA.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
