"""``slurmbus-agent ensure``, ``status`` and ``stop``: one agent a host, replaced without a job noticing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import SITE, agent_site, counted, counting, shell
from contract.bus_site import BusSite, joined, wait_until
from slurmbus.events import Event, Finished
from slurmbus_agent.presence import Places
from slurmbus_protocol.messages import AskLog, LogTail
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


def agent(site: BusSite, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
    bundle = str(site.home.bundle_path(SITE))
    command = [sys.executable, "-m", "slurmbus_agent", verb, "--site", SITE, "--config", bundle, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[BusSite]:
    with agent_site(tmp_path) as (site, foreground):
        foreground.stop()
        yield site
        assert agent(site, "stop").returncode == 0


def places(site: BusSite) -> Places:
    spool = site.home.site(SITE).spool
    assert spool is not None
    return Places(Path(spool))


def test_it_is_started_once_and_stopped(site: BusSite) -> None:
    assert agent(site, "status").returncode == 1
    started = agent(site, "ensure")
    assert (started.returncode, "is started" in started.stdout) == (0, True), started.stderr
    found = places(site).read()
    assert found is not None
    assert found.alive
    assert os.getsid(found.pid) == found.pid  # the end of the session that started it isn't its end
    assert "runs already" in agent(site, "ensure").stdout
    assert f"process {found.pid} runs" in agent(site, "status").stdout
    wait_until(lambda: bool(site.client.ask("log", AskLog(length=1000), LogTail).data), "the agent's log comes")

    assert f"process {found.pid} has ended" in agent(site, "stop").stdout
    assert not found.alive
    assert "no agent runs here" in agent(site, "stop").stdout


def test_while_a_stop_file_is_there_nothing_is_started(site: BusSite) -> None:
    """As by cron, again and again; and it comes back by the same command when the file is gone."""
    stop = site.home.bundle_path(SITE).with_name(f"{SITE}.stop")
    stop.touch()
    before = sorted(places(site).folder.iterdir())
    for replace in ((), ("--replace",)):
        said = agent(site, "ensure", *replace)
        assert (said.returncode, str(stop) in said.stderr) == (4, True)
    assert sorted(places(site).folder.iterdir()) == before
    stop.unlink()
    assert "is started" in agent(site, "ensure").stdout


def test_one_that_was_killed_is_started_again(site: BusSite) -> None:
    agent(site, "ensure")
    found = places(site).read()
    assert found is not None
    os.kill(found.pid, 9)
    wait_until(lambda: not found.alive, "it is dead")
    assert "is started" in agent(site, "ensure").stdout


def test_another_takes_over_under_a_running_job(site: BusSite, tmp_path: Path) -> None:
    agent(site, "ensure")
    before = places(site).read()
    release = tmp_path / "release"
    seen: list[Event] = []
    with site.client.follow(site.client.submit(shell(counting(release, before=100, after=100)))) as events:
        for event in events:
            seen.append(event)
            if joined(seen, Stream.STDOUT).endswith(b"0000100\n") and not release.exists():
                replaced = agent(site, "ensure", "--replace")
                assert "has taken over" in replaced.stdout, replaced.stderr
                release.touch()
    after = places(site).read()
    assert before is not None
    assert after is not None
    assert (before.alive, after.alive) == (False, True)
    assert after.pid != before.pid
    last = seen[-1]
    assert isinstance(last, Finished)
    assert last.record.state is JobState.COMPLETED
    assert joined(seen, Stream.STDOUT) == counted(200)


def test_a_configuration_that_cant_be_used(site: BusSite) -> None:
    bundle = site.home.bundle_path(SITE)
    bundle.write_text(bundle.read_text().replace("servers", "servants"))
    refused = agent(site, "ensure")
    assert refused.returncode == 2
    assert "servants" in refused.stderr
    bundle.write_text(bundle.read_text().replace("servants", "servers"))
