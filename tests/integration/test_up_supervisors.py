"""What keeps a site's agent running, and taking over from one that runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import slurmbus_agent
from contract.bus_site import wait_until
from integration.jobs import follow, spec, wait_until_it_runs
from integration.laptops import Laptop, processes
from slurmbus.bootstrap import journal
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.supervising import Systemd
from slurmbus_cluster import Cluster
from slurmbus_protocol.states import JobState


@pytest.fixture(scope="module")
def open_laptop(make_laptop: Callable[..., Laptop], cluster: Cluster) -> Iterator[Laptop]:
    """A machine whose bus the cluster's hosts reach, so that agents outlive every connection of SSH."""
    laptop = make_laptop("supervisors", listen=cluster.gateway)
    yield laptop
    laptop.close()


def test_cron_starts_it_when_the_login_node_boots(open_laptop: Laptop, cluster: Cluster) -> None:
    cluster.exec("login2", ["crontab", "-"], user="bob", stdin="# mine\n5 4 * * 0 true\n")
    try:
        with open_laptop.up("bob", "login2", "--supervisor", "cron", "--no-trial") as (site, _):
            table = cluster.exec("login2", ["crontab", "-l"], user="bob").stdout
            assert table.startswith("# mine\n5 4 * * 0 true\n")
            assert table.count("ensure") == 2
            # While the agent is there, cron's look ends in the shell: a Python each time would cost an hour a month.
            look = next(line for line in table.splitlines() if "ensure" in line and not line.startswith("@"))
            words = re.sub(r"^\S+( \*){4} ", "", look).replace("\\%", "%").removesuffix(" >/dev/null 2>&1")
            asked = re.sub(r"\S*slurmbus-agent ensure", "echo ensure", words)
            assert asked != words
            assert cluster.exec("login2", ["sh", "-c", asked], user="bob").stdout == ""
            cluster.exec("login2", ["pkill", "-KILL", "-u", "bob", "-f", "slurmbus_agent run"])
            assert cluster.exec("login2", ["sh", "-c", asked], user="bob").stdout.startswith("ensure --site")
            cluster.kill_host("login2")
            cluster.start_host("login2")
            wait_until(lambda: bool(processes(cluster, "login2", "bob")), "cron starts the agent")
            assert open_laptop.run_job(site, "id", "-un").out == "bob\n"
        assert cluster.exec("login2", ["crontab", "-l"], user="bob").stdout == "# mine\n5 4 * * 0 true\n"
    finally:
        cluster.exec("login2", ["crontab", "-r"], user="bob", check=False)


def test_scrontab_runs_it_as_a_job(open_laptop: Laptop, cluster: Cluster) -> None:
    with open_laptop.up("alice", "login", "--supervisor", "scrontab", "--no-trial") as (site, _):
        shown = cluster.exec("login", ["squeue", "--me", "--noheader", "--format=%j %T"], user="alice").stdout
        assert f"slurmbus-agent-{site} RUNNING" in shown
        assert not processes(cluster, "login", "alice")
        assert open_laptop.run_job(site, "id", "-un").out == "alice\n"

        # A stop file ends the job for good, and not for another one each minute.
        def table() -> str:
            return cluster.exec("login", ["scrontab", "-l"], user="alice").stdout

        cluster.exec("login", ["touch", f"/home/alice/.config/slurmbus/{site}.stop"], user="alice")
        wait_until(lambda: "#DISABLED" in table(), "the entry to be disabled")
        wait_until(lambda: not cluster.exec("login", ["squeue", "--me", "-h"], user="alice").stdout, "the job's end")
        cluster.exec("login", ["rm", f"/home/alice/.config/slurmbus/{site}.stop"], user="alice")
        open_laptop.slurmbus("up", site, "--no-trial")
        assert "#DISABLED" not in table()
    assert "slurmbus" not in cluster.exec("login", ["scrontab", "-l"], user="alice", check=False).stdout
    cluster.wait_idle()


@pytest.mark.parametrize("supervisor", ["cron", "scrontab"])
def test_down_ends_it_when_its_program_is_gone(open_laptop: Laptop, cluster: Cluster, supervisor: str) -> None:
    """A centre clears scratch: what was started goes on in memory, and what starts it stands in a table."""

    program = {"cron": "crontab"}.get(supervisor, supervisor)

    def table() -> str:
        return cluster.exec("login", [program, "-l"], user="alice", check=False).stdout

    with open_laptop.up("alice", "login", "--supervisor", supervisor, "--no-trial") as (site, _):
        done = journal.read(open_laptop.home, site)
        assert done is not None
        command = Layout(done.install_folder, site).command
        assert command in table()
        cluster.exec("login", ["rm", "-r", done.install_folder])
        said = open_laptop.slurmbus("down", site)
        assert f"there is no {command}" in said.err
        assert f"{site} is down" in said.err
        assert site not in table()
        assert not processes(cluster, "login", "alice", "slurmbus_agent run --site " + site)
        wait_until(lambda: not cluster.exec("login", ["squeue", "--me", "-h"], user="alice").stdout, "the job's end")
        assert f"{site} was down" in open_laptop.slurmbus("down", site).err


def test_a_detached_one_outlives_the_login_and_up_brings_it_back(open_laptop: Laptop, cluster: Cluster) -> None:
    with open_laptop.up("alice", "login", "--supervisor", "detached", "--no-trial") as (site, _):
        assert open_laptop.run_job(site, "id", "-un").out == "alice\n"
        (agent,) = processes(cluster, "login", "alice", "slurmbus_agent run")
        cluster.exec("login", ["kill", "-KILL", str(agent)])
        said = open_laptop.slurmbus("up", site, "--login", "--no-trial")
        assert "is started" in said.err
        assert open_laptop.run_job(site, "id", "-un").out == "alice\n"


def test_the_systemd_unit_is_a_good_one(open_laptop: Laptop, cluster: Cluster) -> None:
    with open_laptop.up("alice", "login", "--no-trial") as (site, _):
        done = journal.read(open_laptop.home, site)
        assert done is not None
        unit = Systemd(Layout(done.install_folder, site), done.config, done.environment)
        path = f"/home/alice/{unit.unit}"
        cluster.copy_to("login", unit.text().encode(), path, owner="alice")
        verify = ["systemd-analyze", "verify", "--user", path]
        verified = cluster.exec("login", verify, user="alice", env={"XDG_RUNTIME_DIR": "/tmp"}, check=False)
        cluster.exec("login", ["rm", path])
        assert (verified.exit_code, verified.stderr) == (0, "")


def test_an_upgrade_under_running_jobs(open_laptop: Laptop, cluster: Cluster, tmp_path: Path) -> None:
    package = Path(slurmbus_agent.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / package.name / "budgets.py").open("a") as changed:
        changed.write("\n# Another version.\n")
    newer = {"PYTHONPATH": str(tmp_path)}
    with open_laptop.up("alice", "login", "--no-trial") as (site, _), open_laptop.client(site) as client:
        before = processes(cluster, "login", "alice", "slurmbus_agent run")
        script = "for number in 1 2 3; do echo $number; done; until [ -e ~/go ]; do sleep 0.1; done; echo 4"
        key = client.submit(spec("sh", "-c", script))
        wait_until_it_runs(client, key)

        told = open_laptop.slurmbus("up", site, "--login", "--no-trial", env=newer)
        assert "another version of the agent is here" in told.err
        assert processes(cluster, "login", "alice", "slurmbus_agent run") == before
        upgraded = open_laptop.slurmbus("up", site, "--upgrade", "--no-trial", env=newer)
        assert "has taken over" in upgraded.err
        after = processes(cluster, "login", "alice", "slurmbus_agent run")
        assert len(after) == 1
        assert after != before

        cluster.exec("login", ["touch", "/home/alice/go"], user="alice")
        story = follow(client, key)
        assert (story.record.state, story.stdout) == (JobState.COMPLETED, "1\n2\n3\n4\n")
        assert len({state for state in story.states if state is JobState.RUNNING}) == 1
    cluster.exec("login", ["rm", "/home/alice/go"])
