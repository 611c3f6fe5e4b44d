"""``slurmbus metrics`` as a process, with a real bus."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from browser.served import served
from contract.bus_site import SITE, BusSite, bus_site, wait_until
from slurmbus.testing import ScriptedAgent, ended_start
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid

PROGRAM = [sys.executable, "-m", "slurmbus"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusSite]:
    with bus_site(tmp_path_factory.mktemp("metrics")) as one:
        yield one


def environment(site: BusSite) -> dict[str, str]:
    return {**os.environ, "SLURMBUS_HOME": str(site.home.path)}


@contextmanager
def serving(site: BusSite, folder: Path) -> Iterator[str]:
    """Run the command, and give its address."""
    said = folder / "said"
    with said.open("wb") as output:
        process = subprocess.Popen([*PROGRAM, "metrics", "--port", "0"], stderr=output, env=environment(site))
    try:
        wait_until(lambda: "/metrics" in said.read_text(), "the server", 60)
        yield said.read_text().split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, said.read_text()


def value(page: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == f"slurmbus_{name}" and labels.items() <= sample.labels.items():
                return sample.value
    return None


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_a_scrape_shows_the_agent_and_counts_jobs_that_end(site: BusSite, tmp_path: Path) -> None:
    key = new_ulid()

    async def begin(agent: ScriptedAgent) -> None:
        await agent.heartbeat()
        await agent.record(key, JobState.RUNNING)

    async def end(agent: ScriptedAgent) -> None:
        subject = subjects.state(SITE, key, 0)
        found = await agent.bus.last(subjects.STATES, subject)
        assert found is not None
        record = codec.decode_as(found.data, Record)
        done = msgspec.structs.replace(
            record, state=JobState.COMPLETED, starts=(ended_start(),), updated_at=time.time()
        )
        await agent.bus.publish_until_acknowledged(subject, codec.encode(done))

    site.play(begin)
    with serving(site, tmp_path) as url:
        wait_until(lambda: value(scrape(url), "jobs", site=SITE, state="RUNNING") == 1, "the job")
        page = scrape(url)
        assert value(page, "bus_up") == 1
        assert value(page, "agent_up", site=SITE, agent="scripted") == 1
        assert value(page, "jobs_ended_total", site=SITE, state="COMPLETED") == 0
        site.play(end)
        wait_until(lambda: value(scrape(url), "jobs_ended_total", site=SITE, state="COMPLETED") == 1, "its end")


def test_once_writes_them_and_ends(site: BusSite) -> None:
    done = subprocess.run(
        [*PROGRAM, "metrics", "--once"], env=environment(site), capture_output=True, text=True, timeout=60, check=True
    )
    assert value(done.stdout, "site_up", site=SITE) is not None
    assert value(done.stdout, "bus_up") == 1


def test_what_cannot_be_served_is_told(site: BusSite, tmp_path: Path) -> None:
    with serving(site, tmp_path) as url:
        port = url.split(":")[2].partition("/")[0]
        done = subprocess.run(
            [*PROGRAM, "metrics", "--port", port], env=environment(site), capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert f"127.0.0.1:{port} can't be listened on: Address already in use" in done.stderr
    done = subprocess.run(
        [*PROGRAM, "metrics"],
        env={**os.environ, "SLURMBUS_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no site yet" in done.stderr


def test_the_dashboard_serves_them_too_unless_it_is_private(site: BusSite) -> None:
    with served(site.home) as page:
        wait_until(lambda: value(scrape(page.url + "metrics"), "bus_up") == 1, "the bus")
    with served(site.home, "--private") as page, pytest.raises(HTTPError, match="403"):
        scrape(page.url + "metrics")


def test_the_dashboard_speaks_json_too(site: BusSite) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "dashboard", "--port", "0", "--log-format", "json"],
        env=environment(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        line = json.loads(process.stderr.readline())
        assert re.fullmatch(r"dashboard: http://127.0.0.1:\d+/", line["message"])
        assert "#token=" in process.stdout.readline(), "the secret isn't in the log"
        process.send_signal(signal.SIGTERM)
        assert all(json.loads(line) for line in process.stderr)
