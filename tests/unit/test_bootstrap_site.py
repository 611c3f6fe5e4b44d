"""What is written at a site: wheels, scripts, crontabs, units; and what Slurm and the agent say there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from slurmbus.bootstrap import account, wheels
from slurmbus.bootstrap.chain import Grade, read_report
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.supervising import Cron, Detached, Scrontab, Systemd, with_entry
from slurmbus_agent.cli import EXIT_STOPPED
from slurmbus_agent.presence import Places

LAYOUT = Layout("/home/alice/50 % off", "leo")
CONFIG = "/home/alice/.config/slurmbus/leo.toml"
MINE = "MAILTO=me\n5 4 * * 0 true\n"


@pytest.mark.parametrize("table", ["", MINE, MINE.rstrip("\n")])
def test_a_crontab_keeps_what_else_is_there(table: str) -> None:
    lines = Cron(LAYOUT, CONFIG, {}).lines()
    once = with_entry(table, "leo", lines)
    assert with_entry(once, "leo", lines) == once
    assert once.startswith(table)
    removed = with_entry(once, "leo", "")
    assert removed.rstrip("\n") == table.rstrip("\n")


def test_entries_of_several_sites() -> None:
    both = with_entry(with_entry(MINE, "leo", "a\n"), "leo2", "b\n")
    assert with_entry(both, "leo", "") == with_entry(MINE, "leo2", "b\n")
    assert with_entry(both, "leo", "c\n").count("begin") == 2


def test_cron_takes_no_bare_percent_sign() -> None:
    lines = Cron(LAYOUT, CONFIG, {}).lines().splitlines()
    assert "/home/alice/50 \\% off/sites/leo/slurmbus-agent" in lines[0]
    assert lines[0].startswith("@reboot /bin/sh -c ")
    assert lines[1].split()[1:5] == ["*"] * 4


@dataclass
class Cronned:
    """A site's crontab entry in a folder, with a command that only says that it was called."""

    folder: Path

    def __post_init__(self) -> None:
        self.config = self.folder / "the user's" / "leo.toml"
        self.spool = Places(self.folder / "the user's" / "spool $HOME")
        self.called = self.folder / "called"
        layout = Layout(str(self.folder / "agent"), "leo")
        command = Path(layout.command)
        for folder in (self.config.parent, command.parent, self.spool.folder):
            folder.mkdir(parents=True)
        command.write_text(f"#!/bin/sh\necho \"$@\" >>'{self.called}'\n")
        command.chmod(0o700)
        lines = Cron(layout, str(self.config), {}, str(self.spool.folder.parent)).lines().splitlines()
        self.boot, self.look = (re.sub(r"^(@reboot|\S+( \*){4}) ", "", line) for line in lines)

    def calls(self, line: str, shell: str = "/bin/sh") -> bool:
        """Say whether the very words that a shell gets from cron call the command."""
        self.called.unlink(missing_ok=True)
        assert (
            subprocess.run([shell, "-c", line.replace("\\%", "%")], check=False, env={"PATH": "/bin"}).returncode == 0
        )
        return self.called.exists() and self.called.read_text().startswith("ensure --site leo")


def test_cron_starts_nothing_while_a_stop_file_is_there(tmp_path: Path) -> None:
    cronned = Cronned(tmp_path)
    assert cronned.calls(cronned.boot)
    assert cronned.calls(cronned.look)
    for stop in (cronned.config.with_name("leo.stop"), cronned.spool.folder.parent / "stop"):
        stop.touch()
        assert not cronned.calls(cronned.boot)
        assert not cronned.calls(cronned.look)
        stop.unlink()


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_cron_starts_no_python_while_the_agent_is_there(tmp_path: Path, shell: str) -> None:
    """This process is the agent; what isn't exactly that process is none."""
    cronned = Cronned(tmp_path)
    cronned.spool.arrive()
    assert not cronned.calls(cronned.look, shell)
    assert cronned.calls(cronned.boot, shell)  # of an earlier boot it says nothing

    pid, ticks = cronned.spool.process.read_text().split()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for left in (f"{pid} {int(ticks) + 1}\n", f"{gone.pid} {ticks}\n", f"{pid}\n", "", "x y\n", "1 1\n"):
        cronned.spool.process.write_text(left)
        assert cronned.calls(cronned.look, shell), left
    cronned.spool.arrive()
    cronned.spool.leave()
    assert not cronned.spool.process.exists()
    assert cronned.calls(cronned.look, shell)


def test_cron_takes_an_agent_that_has_ended_for_none(tmp_path: Path) -> None:
    """It ends without a word, and whoever started it doesn't look at once."""
    cronned = Cronned(tmp_path)
    arrive = "import sys; from pathlib import Path; from slurmbus_agent.presence import Places; "
    arrive += "Places(Path(sys.argv[1])).arrive()"
    zombie = subprocess.Popen([sys.executable, "-c", arrive, cronned.spool.folder.parent])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert cronned.spool.process.read_text().split()[0] == str(zombie.pid)
    assert cronned.calls(cronned.look)
    zombie.wait()
    assert cronned.calls(cronned.look)


def test_scrontab_runs_it_in_the_foreground() -> None:
    *options, command = Scrontab(LAYOUT, CONFIG, {}).lines().splitlines()
    assert all(option.startswith("#SCRON --") for option in options)
    assert " run --site leo " in command
    assert command.endswith('; test $? -ne 4 || scancel --cron "$SLURM_JOB_ID"')
    assert "ensure" not in command


def test_the_unit() -> None:
    text = Systemd(LAYOUT, CONFIG, {}).text()
    assert 'ExecStart="/home/alice/50 %% off/sites/leo/slurmbus-agent" "run" "--site" "leo"' in text
    assert "Restart=always" in text
    assert f"RestartPreventExitStatus={EXIT_STOPPED}\n" in text
    assert "WantedBy=default.target" in text
    assert Detached(LAYOUT, CONFIG, {}).kind == "detached"


# ---------------------------------------------------------------------- wheels


def test_our_own_wheels_hold_what_is_installed_here() -> None:
    data, name = wheels.own_wheel("slurmbus-agent", "slurmbus_agent")
    assert name == f"slurmbus_agent-{version('slurmbus-agent')}-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        assert "slurmbus_agent/cli.py" in names
        assert "slurmbus_agent/runner/__main__.py" in names
        assert not any("__pycache__" in entry for entry in names)
        record = archive.read(next(entry for entry in names if entry.endswith("RECORD"))).decode()
    assert {line.split(",")[0] for line in record.splitlines()} == set(names)
    assert wheels.own_wheel("slurmbus-agent", "slurmbus_agent")[0] == data


def test_what_the_agent_needs_of_others() -> None:
    needed = wheels.requirements()
    assert any(line.startswith("msgspec") for line in needed)
    assert any(line.startswith("nats-py[nkeys]") for line in needed)
    assert not any("slurmbus" in line or "pyslurm" in line or "nats-server" in line for line in needed)


# ---------------------------------------------------------------------- Slurm

ASSOCIATIONS = "research||high,normal|normal\nteaching|gpu|normal|\n"
PARTITIONS = (
    "PartitionName=main AllowAccounts=ALL Default=YES MaxTime=1-00:00:00 State=UP TotalCPUs=16 TotalNodes=2\n"
    "PartitionName=gpu AllowAccounts=teaching Default=NO MaxTime=UNLIMITED State=DRAIN TotalCPUs=8 TotalNodes=1\n"
)
FOUND = account.Account(
    associations=account.parse_associations(ASSOCIATIONS), partitions=account.parse_partitions(PARTITIONS)
)


def test_what_the_user_may_use() -> None:
    assert account.describe(FOUND) == [
        "account research: QOS high, normal (default normal)",
        "account teaching in partition gpu: QOS normal",
        "partition main: 2 nodes, 16 CPUs; at most 1-00:00:00; default",
        "partition gpu: 1 nodes, 8 CPUs; at most UNLIMITED; drain; for teaching",
    ]


def test_a_queue_to_paste() -> None:
    words = 'SlurmQueueConfig(partition="main", account="research", time_limit="01:00:00", cpus=1, mem="1G")'
    assert account.queue_configuration(FOUND) == words
    assert account.queue_configuration(account.Account()) == (
        'SlurmQueueConfig(time_limit="01:00:00", cpus=1, mem="1G")'
    )


def test_the_trial_names_a_partition_where_slurm_chooses_none() -> None:
    assert account.trial_options(FOUND) == {}
    short = account.PartitionFound(name="short", state="UP", max_time="00:30:00")
    only = account.Account(partitions=(short,))
    assert account.trial_options(only) == {"partition": "short"}
    assert 'time_limit="00:30:00"' in account.queue_configuration(only)


@pytest.mark.parametrize(
    ("text", "minutes"), [("1-02:03:04", 1564), ("00:30:00", 30), ("UNLIMITED", None), ("infinite", None)]
)
def test_limits(text: str, minutes: int | None) -> None:
    assert account.minutes(text) == minutes


def test_the_agents_own_report() -> None:
    report = (
        "ok  Python      3.12.4 (/x/python)\n"
        "--  slurm.conf  none of /etc/slurm/slurm.conf\n"
        "NO  bus         tls://a:1 gave no answer\n"
        "                → is it there?\n"
        "Jobs can't run from here yet.\n"
    )
    found = list(read_report(report))
    assert [(one.what, one.grade) for one in found] == [
        ("there: Python", Grade.FINE),
        ("there: slurm.conf", Grade.NOTE),
        ("there: bus", Grade.BROKEN),
    ]
    assert found[2].hint == "is it there?"


def test_the_headers_before_a_newer_slurms_are_those_of_the_clusters_image() -> None:
    """The image is built with them, so they are known to work."""
    root = Path(__file__).parents[2]
    image = sorted((root / "containers" / "slurm-compat" / "slurm").iterdir())
    taken = sorted((root / "orchestrator_plugin" / "slurmbus" / "bootstrap" / "compat" / "slurm").iterdir())
    assert [(path.name, path.read_bytes()) for path in taken] == [(path.name, path.read_bytes()) for path in image]
