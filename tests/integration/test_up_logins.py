"""`slurmbus up` through every kind of login: from an account to a job that ran, with one login."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.laptops import Laptop, processes, ssh_processes
from integration.logins import Logins
from slurmbus_cluster import Cluster

OLD_PYTHON = "/usr/games/python3"
NEW_PYTHON = """
set -e
mkdir -p python/bin python/lib
cp "$(readlink -f /usr/bin/python3)" python/bin/python3
cp -r "/usr/lib/$(basename "$(readlink -f /usr/bin/python3)")" python/lib
tar -cz --exclude __pycache__ --exclude test --exclude sitecustomize.py -f /dev/stdout python
"""
"""Makes an archive like those of python-build-standalone, of a Python that is at hand."""

SIGN = """#!/bin/sh
cd {folder} && echo "$0" >>fetched && exec ssh-keygen -q -s authority -I alice@example.org -n alice -V -1m:+5m key.pub
"""
"""Fetches a certificate as `step ssh login` does: for minutes only, and it lies beside the key."""


def test_a_key_and_the_same_again(laptop: Laptop, cluster: Cluster) -> None:
    with laptop.up("alice") as (site, said):
        assert "login " in said.err
        assert "trial job   ran on c" in said.err
        assert "reaches the agent's link" in said.err
        assert "SlurmQueueConfig(" in said.out
        assert "research" in said.text
        running = processes(cluster, "login", "alice", "slurmbus_agent run")
        assert running

        again = laptop.slurmbus("up", site)
        assert "nothing had to be changed, and nobody had to log in" in again.err
        looked = laptop.slurmbus("up", site, "--login")
        assert f"{site} is up; nothing had to be changed\n" in looked.err
        assert processes(cluster, "login", "alice", "slurmbus_agent run") == running

        assert laptop.run_job(site, "hostname").out.strip() in {"c1", "c2"}
        assert laptop.slurmbus("status", site).code == 0
        assert laptop.slurmbus("doctor", site).code == 0
        assert laptop.slurmbus("logs", site).out
    assert not processes(cluster, "login", "alice")
    assert "slurmbus" not in cluster.exec("login", ["crontab", "-l"], user="alice", check=False).stdout
    assert not ssh_processes([str(laptop.logins.config)])


def test_a_password_typed_by_a_person_through_a_jump_host(laptop: Laptop, logins: Logins, cluster: Cluster) -> None:
    site = "site-carol"
    with logins.only_through("jump"):
        with laptop.terminal(*laptop.arguments(site, "carol", "behind-one")) as terminal:
            terminal.answer("carol@.*password: ", "carol-pass")
            assert terminal.end() == 0, terminal.text
        assert f"{site} is up" in terminal.text
        assert terminal.text.count("password:") == 1
        assert "nobody had to log in" in laptop.slurmbus("up", site).err
        assert processes(cluster, "login2", "carol")
        # The connection of the tunnel is used again: there is nobody who could type.
        laptop.slurmbus("down", site)
    assert not processes(cluster, "login2", "carol")


def test_a_one_time_code_from_a_program_through_two_jump_hosts(laptop: Laptop, logins: Logins) -> None:
    answers = logins.askpass("dave-pass", [logins.next_code()])
    with (
        logins.only_through("jump", "jump2"),
        laptop.up("dave", "behind-two", "--askpass", answers["SSH_ASKPASS"]) as (site, said),
    ):
        assert f"{site} is up" in said.err
        asked = Path(answers["SSH_ASKPASS"]).with_name("asked").read_text().splitlines()
        assert [line.partition(") ")[2].split()[0] for line in asked] == ["Password:", "One-time"]
        assert laptop.run_job(site, "id", "-un").out == "dave\n"


def test_a_shell_that_prints_noise(laptop: Laptop) -> None:
    with laptop.up("erin") as (site, _):
        assert laptop.run_job(site, "echo", "and nothing else").out == "and nothing else\n"


def test_a_home_in_which_nothing_may_be_executed(laptop: Laptop, cluster: Cluster) -> None:
    with laptop.up("frank") as (site, said):
        assert "programs can't be started from the home" in said.err
        assert processes(cluster, "login", "frank", "/scratch/frank/")
        assert laptop.run_job(site, "id", "-un").out == "frank\n"


def test_a_scratch_folder_that_somebody_else_has_made_in_ones_name(laptop: Laptop, cluster: Cluster) -> None:
    """Bob could put his programs there in the place of Frank's, which Frank's cron would start."""
    trap = "rm -rf /scratch/frank && install -d -o bob -m 777 /scratch/frank"
    cluster.exec("login", ["sh", "-c", trap])
    try:
        named = laptop.slurmbus(
            *laptop.arguments("site-frank", "frank", "login", "--install-folder", "/scratch/frank/agent"), ok=False
        )
        assert named.code == 4
        assert "/scratch/frank belongs to bob" in named.err
        laptop.slurmbus("sites", "remove", "site-frank")
        with laptop.up("frank") as (site, said):
            assert "not there: /home/scratch/frank belongs to bob" in said.err
            assert processes(cluster, "login", "frank", "/var/tmp/frank/slurmbus-agent/")
            assert laptop.run_job(site, "id", "-un").out == "frank\n"
        assert not cluster.exec("login", ["find", "/scratch/frank/", "-mindepth", "1"]).stdout
    finally:
        cluster.exec("login", ["rm", "-rf", "/scratch/frank", "/var/tmp/frank"])


def test_a_full_home(laptop: Laptop, cluster: Cluster) -> None:
    site = "site-grace"
    refused = laptop.slurmbus(*laptop.arguments(site, "grace", "login"), ok=False)
    assert refused.code == 4
    assert "/home/grace" in refused.err
    assert "no room" in refused.err
    assert "--install-folder" in refused.err
    assert not ssh_processes([str(laptop.logins.config)])
    there = cluster.exec("login", ["find", "/home/grace"]).stdout.split()
    assert there == ["/home/grace", "/home/grace/results.dat"]
    with laptop.up("grace", "login", "--install-folder", "/scratch/grace/agent") as (site, _):
        assert laptop.run_job(site, "id", "-un").out == "grace\n"


def test_a_python_that_is_too_old(laptop: Laptop, logins: Logins, tmp_path: Path) -> None:
    with laptop.up("heidi") as (site, said):
        assert "module python/3" in said.err
        assert laptop.run_job(site, "id", "-un").out == "heidi\n"
    refused = laptop.slurmbus("up", site, "--agent-python", OLD_PYTHON, ok=False)
    assert refused.code == 4
    assert "is pypy 3.9" in refused.err
    laptop.slurmbus("sites", "remove", site)


def test_a_python_that_is_taken_along(laptop: Laptop, cluster: Cluster, tmp_path: Path) -> None:
    archive = tmp_path / "python.tar.gz"
    make = laptop.cluster.popen("login", ["bash", "-c", f"cd $(mktemp -d) && {NEW_PYTHON}"], user="alice")
    archive.write_bytes(make.communicate()[0])
    assert make.returncode == 0
    with laptop.up("heidi", "login", "--python-archive", str(archive)) as (site, said):
        assert "taken along" in said.err
        assert processes(cluster, "login", "heidi")
        assert laptop.run_job(site, "id", "-un").out == "heidi\n"


@pytest.mark.parametrize("command", ["env LC_ALL=C sh -c {command}", "exec bash --norc"], ids=["given", "typed"])
def test_a_login_that_wants_a_terminal_and_a_command(laptop: Laptop, command: str) -> None:
    with laptop.up("judy", "login", "--force-tty", "--post-login-command", command) as (site, _):
        assert laptop.run_job(site, "id", "-un").out == "judy\n"


@pytest.fixture
def authority(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A folder with a key that no host knows, and an authority whose certificates the login node takes."""
    for name in ("key", "authority"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    cluster.copy_to("login", tmp_path / "authority.pub", "/etc/ssh/authority.pub")
    settings = "/etc/ssh/sshd_config.d/certificates.conf"
    cluster.copy_to("login", b"TrustedUserCAKeys /etc/ssh/authority.pub\n", settings)
    cluster.daemon("restart", "sshd", "login")
    yield tmp_path
    cluster.exec("login", ["rm", settings, "/etc/ssh/authority.pub"])
    cluster.daemon("restart", "sshd", "login")


def test_a_certificate_that_is_fetched_before_each_login(
    laptop: Laptop, logins: Logins, cluster: Cluster, authority: Path
) -> None:
    fetch, config, site = authority / "fetch", authority / "config", "site-alice"
    fetch.write_text(SIGN.format(folder=authority))
    fetch.chmod(0o700)
    config.write_text(
        f"Host *\n    HostName {cluster.ip('login')}\n    IdentityFile {authority / 'key'}\n    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {authority / 'known_hosts'}\n    StrictHostKeyChecking accept-new\n"
    )
    words = ["up", site, "--host", "login", "--user", "alice", "--ssh-config", str(config)]
    try:
        refused = laptop.slurmbus(*words, ok=False)
        assert refused.code == 3
        assert "the site refused the login" in refused.err
        said = laptop.slurmbus(*words, "--before-login", str(fetch))
        assert f"{site} is up" in said.err
        assert laptop.run_job(site, "id", "-un").out == "alice\n"
        assert " ID alice@example.org (serial" in cluster.daemon("log", "sshd", host="login")

        # The certificate has run out, and the connection is gone: the next login fetches the next one.
        (authority / "key-cert.pub").unlink()
        (tunnel,) = ssh_processes([str(config)])
        os.kill(tunnel, signal.SIGKILL)
        laptop.slurmbus("up", site, "--no-trial")
        assert len((authority / "fetched").read_text().splitlines()) == 2
        assert laptop.run_job(site, "id", "-un").out == "alice\n"
    finally:
        laptop.slurmbus("down", site, ok=False)
    assert not processes(cluster, "login", "alice")
