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
from slurmbus.home import Home
from slurmbus.testing import ScriptedAgent, ended_start
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.messages import Record
from slurmbus_protocol.private_files import write_private
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
def serving(site: BusSite, folder: Path, *options: str) -> Iterator[str]:
    """Run the command, and give its address."""
    said = folder / "said"
    with said.open("wb") as output:
        process = subprocess.Popen([*PROGRAM, "metrics", "--port", "0", *options], stderr=output, env=environment(site))
    try:
        wait_until(lambda: "/metrics" in said.read_text(), "the server", 60)
        yield next(word for word in said.read_text().split() if word.endswith("/metrics"))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, said.read_text()


def value(page: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == f"slurmbus_{name}" and labels.items() <= sample.labels.items():
                return sample.value
    return None


def scrape(url: str, home: Home | None = None) -> str:
    """Ask as Prometheus does, with the token of a home."""
    token = {"Authorization": f"Bearer {home.metrics_token().read_text().strip()}"} if home else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=30) as answer:
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
        wait_until(lambda: value(scrape(url, site.home), "jobs", site=SITE, state="RUNNING") == 1, "the job")
        page = scrape(url, site.home)
        assert value(page, "bus_up") == 1
        assert value(page, "agent_up", site=SITE, agent="scripted") == 1
        assert value(page, "jobs_ended_total", site=SITE, state="COMPLETED") == 0
        site.play(end)
        wait_until(
            lambda: value(scrape(url, site.home), "jobs_ended_total", site=SITE, state="COMPLETED") == 1, "its end"
        )


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


def test_another_local_user_sees_nothing_at_the_port_of_metrics(site: BusSite, tmp_path: Path) -> None:
    with serving(site, tmp_path) as url:
        token = site.home.metrics_token()
        assert token.stat().st_mode & 0o077 == 0
        for header in ({}, {"Authorization": "Bearer guessed"}, {"Authorization": f"Basic {token.read_text()}"}):
            with pytest.raises(HTTPError, match="401") as refused:
                urllib.request.urlopen(urllib.request.Request(url, headers=header), timeout=30)
            assert b"slurmbus_" not in refused.value.read()
        assert value(scrape(url, site.home), "site_up", site=SITE) is not None
        write_private(token, b"another\n")  # counts at once
        assert value(scrape(url, site.home), "site_up", site=SITE) is not None
    with serving(site, tmp_path, "--public") as url:
        assert "slurmbus_" in scrape(url)


def test_the_dashboard_serves_them_too(site: BusSite) -> None:
    with served(site.home) as page:
        wait_until(lambda: value(scrape(page.url + "metrics", site.home), "bus_up") == 1, "the bus")
        with pytest.raises(HTTPError, match="401"):
            scrape(page.url + "metrics")
    with served(site.home, "--public") as page:
        wait_until(lambda: value(scrape(page.url + "metrics"), "bus_up") == 1, "the bus")


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
