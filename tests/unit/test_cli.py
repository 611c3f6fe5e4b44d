"""The command without a bus: help, its speed's cause, and wrong usage."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurmbus import cli
from slurmbus.bootstrap import journal
from slurmbus.bootstrap.journal import Journal
from slurmbus.bootstrap.login import Login
from slurmbus.commands.console import duration
from slurmbus.commands.view import JobView
from slurmbus.events import AgentStatus, Event, Finished, Gap, StateChanged, Waiting
from slurmbus.home import Home
from slurmbus_protocol.messages import Heartbeat, Record, SchedulerHealth
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SLURMBUS_SITE", raising=False)


def imported(code: str) -> set[str]:
    """The packages that some code imports."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_help_imports_next_to_nothing() -> None:
    """It answers in a tenth of a second because of this."""
    packages = imported("from slurmbus.cli import main\nmain(['--help'])")
    assert "click" in packages
    assert not packages & {
        "dagster",
        "dagster_slurmbus",
        "slurmbus_agent",
        "nats",
        "msgspec",
        "nacl",
        "rich",
        "asyncio",
    }


def test_no_command_imports_dagster_or_the_agent() -> None:
    commands = "\n".join(f"main([{name!r}, '--help'])" for name in cli.COMMANDS)
    packages = imported(f"from slurmbus.cli import main\n{commands}")
    assert "nats" in packages
    assert not packages & {"dagster", "dagster_pipes", "dagster_slurmbus", "slurmbus_agent", "pyslurm", "rich"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "No such command"),
        (["submit", "--site", "a"], "Missing argument"),
        (["submit", "--", "true"], "there is no site yet"),
        (["submit", "--site", "a", "--", "true"], "no site 'a'"),
        (["submit", "--site", "a", "--time", "soon", "true"], "--time"),
        (["submit", "--site", "a", "--mem", "much", "true"], "--mem"),
        (["submit", "--site", "a", "--gpus", "a b", "true"], "--gpus"),
        (["submit", "--site", "a", "--env", "1=2", "true"], "--env"),
        (["submit", "--site", "a", "--env", "SURELY_NOT_SET", "true"], "SURELY_NOT_SET"),
        (["submit", "--site", "a", "--file", "missing.txt", "true"], "missing.txt"),
        (["submit", "--site", "a", "--name", "ä", "true"], "--name"),
        (["sites", "show", "a"], "no site 'a'"),
        (["sites", "remove", "a"], "no site 'a'"),
        (["sites", "add", "A.B"], "A.B"),
        (["jobs"], "there is no site yet"),
    ],
)
def test_wrong_usage_is_told_without_a_traceback(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and text in said for name, text in cli.COMMANDS.items())
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("slurmbus ")


def test_sites_are_added_shown_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sites", "add", "a", "--url", "nats://127.0.0.1:1", "--spool", "/scratch"]) == 0
    assert "a.toml" in capsys.readouterr().err
    assert cli.main(["sites", "show", "a", "--json"]) == 0
    shown = capsys.readouterr().out
    assert '"spool":"/scratch"' in shown
    home = Home.default()
    assert home.credentials.read_text().strip() not in shown
    assert re.findall('nkey_seed = "(SU.*)"', home.bundle_path("a").read_text())[0] not in shown
    assert cli.main(["sites", "show", "a"]) == 0
    assert "/scratch" in capsys.readouterr().out
    assert cli.main(["sites", "remove", "a"]) == 0


def test_a_site_that_is_up_is_not_removed_before_it_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sites", "add", "a", "--url", "nats://127.0.0.1:1"]) == 0
    home = Home.default()
    home.change_site("a", login=Login(host="nowhere.invalid"))
    folder, config = "/home/alice/.slurmbus/.agent", "/home/alice/.config/slurmbus/a.toml"
    done = Journal(
        site="a",
        host="nowhere",
        install_folder=folder,
        version="1",
        config=config,
        supervisor="cron",
        way="direct",
        servers=(),
    )
    journal.write(home, done)
    capsys.readouterr()
    assert cli.main(["sites", "remove", "a"]) == 2
    assert "'slurmbus down a' first" in capsys.readouterr().err
    assert home.site("a").login is not None
    assert cli.main(["sites", "remove", "a", "--agent-gone"]) == 0
    said = capsys.readouterr().err
    assert "slurmbus bus users remove TEAM a" in said
    assert "its last heartbeat stays on the bus" in said
    assert (home.sites(), journal.read(home, "a")) == ([], None)


def test_a_teams_server_is_told_an_agents_new_key_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sites", "add", "a", "--url", "nats://127.0.0.1:1"]) == 0
    assert cli.main(["sites", "add", "b"]) == 0
    capsys.readouterr()
    assert cli.main(["keys", "rotate-agent", "a"]) == 0
    steps = [line.split(":", 1)[1].strip() for line in capsys.readouterr().err.splitlines()[1:]]
    new = Home.default().site("a").agent_nkey
    assert steps == [f"slurmbus bus users add TEAM a --agent --nkey {new}", "slurmbus up a"]
    assert cli.main(["keys", "rotate-agent", "b"]) == 0
    steps = [line.split(":", 1)[1].strip() for line in capsys.readouterr().err.splitlines()[1:]]
    assert steps == ["slurmbus up b", "slurmbus keys rotate-agent b --finish"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (60, "1:00"),
        (3599, "59:59"),
        (3661, "1:01:01"),
        (90061, "1-01:01:01"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def record(state: JobState, **fields: object) -> Record:
    base = Record(
        key="01JD0000000000000000000000",
        site="a",
        epoch=1,
        state=state,
        name="n",
        submitter="s",
        created_at=0,
        updated_at=0,
    )
    return type(base)(**{**{name: getattr(base, name) for name in base.__struct_fields__}, **fields})


def beat(*, responding: bool = True, **fields: object) -> Heartbeat:
    values: dict[str, object] = {
        "site": "a",
        "agent_id": "x",
        "epoch": 1,
        "leader": True,
        "interval": 10,
        "lease_seconds": 30,
        "host": "login1",
        "user": "u",
        "pid": 1,
        "version": "0",
        "protocol": (1, 1),
        "capabilities": (),
        "started_at": 0,
        "sent_at": 0,
        "scheduler": SchedulerHealth(kind="native", responding=responding, since=0, error="ping timed out"),
    }
    return Heartbeat(**{**values, **fields})  # type: ignore[arg-type]


def test_left_out_bytes_are_explained_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = JobView("a")
    for offset in (100, 300):
        view.show(Gap(0, Stream.STDOUT, offset, 2048, "why", over_limit=True, path="/spool/0.stdout"))
    explained, first, second = capsys.readouterr().err.splitlines()
    assert "only the newest lines are shown; all of it lies on the site in /spool/0.stdout" in explained
    assert first == second == "[… 2,048 bytes left out …]"


def test_gaps_of_streams_that_are_not_shown_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    JobView("a", streams={}).show(Gap(0, Stream.STDOUT, 0, 2048, "evicted"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (StateChanged(record(JobState.PENDING, job_id=7, reason="Priority")), "job 7: PENDING, Priority"),
        (StateChanged(record(JobState.RUNNING, job_id=7, node_list="c1")), "job 7: RUNNING on c1"),
        (StateChanged(record(JobState.STAGING)), ""),
        (
            StateChanged(record(JobState.FAILED, job_id=7, exit_code=3, start_time=1.0, end_time=3.5)),
            "job 7: FAILED, exit code 3, after 2.5 s",
        ),
        (StateChanged(record(JobState.CANCELLED, signal=15)), "CANCELLED, signal 15"),
        (StateChanged(record(JobState.RUNNING, slurm_state="SUSPENDED")), "RUNNING (SUSPENDED)"),
        (Gap(0, Stream.STDOUT, 0, 2048, "evicted"), "2,048 bytes of stdout are missing: evicted"),
        (Waiting(0, None, None, bus_reachable=False), "the bus hasn't answered since"),
        (Waiting(0, None, None, bus_reachable=True), "no agent has ever answered for site a"),
        (Waiting(0, None, AgentStatus(beat(), 61.0), bus_reachable=True), "(login1) has been silent for 1:01"),
        (Waiting(0, None, AgentStatus(beat(responding=False), 1), bus_reachable=True), "ping timed out"),
        (Waiting(0, None, AgentStatus(beat(), 1), bus_reachable=True), ""),
        (Finished(record(JobState.REJECTED, hint="ask for less")), "ask for less"),
    ],
)
def test_what_is_said_of_an_event(event: Event, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    JobView("a").show(event)
    said = capsys.readouterr().err.strip()
    assert words in said
    assert bool(words) == bool(said)
