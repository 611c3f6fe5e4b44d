"""What is written at a site: wheels, scripts, crontabs, units; and what Slurm and the agent say there."""

from __future__ import annotations

import io
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from slurmbus.bootstrap import account, wheels
from slurmbus.bootstrap.chain import Grade, read_report
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.supervising import Cron, Detached, Scrontab, Systemd, with_entry
from slurmbus_agent.cli import EXIT_STOPPED

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
    assert "'/home/alice/50 \\% off/sites/leo/slurmbus-agent' ensure --site leo" in lines[0]
    assert lines[0].startswith("@reboot test -e ")
    assert lines[1].split()[1:5] == ["*"] * 4


def test_cron_starts_nothing_while_a_stop_file_is_there(tmp_path: Path) -> None:
    """The very words that a shell gets from cron; the command says that it was called."""
    config = tmp_path / "the user's" / "leo.toml"
    layout = Layout(str(tmp_path / "agent"), "leo")
    command, called = Path(layout.command), tmp_path / "called"
    for folder in (config.parent, command.parent):
        folder.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\necho \"$@\" >>'{called}'\n")
    command.chmod(0o700)
    line = Cron(layout, str(config), {}).lines().splitlines()[0].removeprefix("@reboot ")
    config.with_name("leo.stop").touch()
    assert subprocess.run(["/bin/sh", "-c", line], check=False).returncode == 0
    assert not called.exists()
    config.with_name("leo.stop").unlink()
    assert subprocess.run(["/bin/sh", "-c", line], check=False).returncode == 0
    assert called.read_text().startswith("ensure --site leo")


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
