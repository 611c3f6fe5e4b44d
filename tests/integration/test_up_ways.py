"""The ways from a site's agent to the bus, and what happens when one ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.jobs import follow, spec, wait_until_it_runs
from integration.laptops import Laptop, processes, ssh_processes
from integration.logins import Logins
from slurmbus_cluster import Cluster
from slurmbus_cluster.firewall import closed
from slurmbus_protocol.states import JobState


@pytest.fixture(scope="module")
def open_laptop(make_laptop: Callable[..., Laptop], cluster: Cluster) -> Iterator[Laptop]:
    """A machine whose bus the cluster's hosts reach."""
    laptop = make_laptop("open", listen=cluster.gateway)
    yield laptop
    laptop.close()


def connections(cluster: Cluster, host: str, address: str) -> list[str]:
    """Give the connections of a host to an address."""
    return cluster.exec(host, ["ss", "-Htn", "state", "established", "dst", address]).stdout.splitlines()


def test_straight_out_over_tls(open_laptop: Laptop, cluster: Cluster) -> None:
    with open_laptop.up("alice") as (site, said):
        address = open_laptop.home.bus_address()
        assert address is not None
        assert f"way to bus  direct, tls://{address.host}:{address.port}" in said.err
        assert connections(cluster, "login", f"{address.host}:{address.port}")
        assert not ssh_processes([str(open_laptop.logins.config)])
        assert open_laptop.run_job(site, "id", "-un").out == "alice\n"


def test_over_websocket(open_laptop: Laptop, cluster: Cluster) -> None:
    with open_laptop.up("bob", "login", "--way", "websocket") as (site, said):
        address = open_laptop.home.bus_address()
        assert address is not None
        assert f"way to bus  websocket, wss://{address.host}:{address.websocket}" in said.err
        assert connections(cluster, "login", f"{address.host}:{address.websocket}")
        assert open_laptop.run_job(site, "id", "-un").out == "bob\n"


def test_back_through_a_socket_that_others_cannot_open(laptop: Laptop, cluster: Cluster) -> None:
    with laptop.up("alice") as (site, said):
        socket = f"/tmp/slurmbus-1001/{site}.sock"
        assert f"way to bus  tunnel, nats+unix://{socket}: the bus listens on this machine only" in said.err
        dial = f"import socket; socket.socket(socket.AF_UNIX).connect({socket!r})"
        assert cluster.exec("login", ["python3", "-c", dial], user="alice").exit_code == 0
        refused = cluster.exec("login", ["python3", "-c", dial], user="bob", check=False)
        assert "PermissionError" in refused.stderr


def test_back_through_a_port_where_nothing_else_goes(open_laptop: Laptop, cluster: Cluster) -> None:
    """Neither does the login node reach the bus, nor does its sshd forward sockets."""
    with open_laptop.up("ivan") as (site, said):
        assert "way to bus  tunnel, tls://127.0.0.1:" in said.err
        assert "no Unix socket: " in said.err
        assert open_laptop.run_job(site, "id", "-un").out == "ivan\n"


def test_jobs_outlive_the_tunnel_and_one_login_brings_it_back(laptop: Laptop, logins: Logins, cluster: Cluster) -> None:
    with laptop.up("alice", "login", "--no-tunnel-relogin") as (site, _), laptop.client(site) as client:
        key = client.submit(spec("sh", "-c", "echo before; until [ -e ~/go ]; do sleep 0.1; done; echo after"))
        job = wait_until_it_runs(client, key)
        agents = processes(cluster, "login", "alice", "slurmbus_agent run")
        (tunnel,) = ssh_processes([str(logins.config)])
        os.kill(tunnel, signal.SIGKILL)
        cluster.exec("login", ["touch", "/home/alice/go"], user="alice")
        cluster.wait_job(job.job_id, ["COMPLETED"])
        assert client.record(key) == job

        logged_in = logins.accepted("login", "alice")
        said = laptop.slurmbus("up", site, "--no-trial")
        assert logins.accepted("login", "alice") == logged_in + 1
        assert processes(cluster, "login", "alice", "slurmbus_agent run") == agents, said.err
        story = follow(client, key)
        assert (story.record.state, story.stdout) == (JobState.COMPLETED, "before\nafter\n")
    cluster.exec("login", ["rm", "/home/alice/go"])


def test_a_tunnel_of_which_only_the_sites_end_is_left_is_opened_anew(laptop: Laptop, logins: Logins) -> None:
    """The network changed: the site's sshd hasn't noticed, and takes connections that lead nowhere."""
    with laptop.up("alice", "login", "--no-tunnel-relogin", "--no-trial") as (site, _):
        (tunnel,) = ssh_processes([str(logins.config)])
        os.kill(tunnel, signal.SIGSTOP)
        try:
            (control,) = Path(laptop.environment()["XDG_RUNTIME_DIR"]).rglob("*.ssh")
            control.unlink()
            laptop.slurmbus("up", site, "--no-trial")
            assert laptop.run_job(site, "id", "-un").out == "alice\n"
        finally:
            os.kill(tunnel, signal.SIGKILL)


def test_compute_nodes_that_cannot_call_the_login_node(laptop: Laptop, cluster: Cluster) -> None:
    with closed(cluster, "login", "1024:65535", to=("c1", "c2")), laptop.up("bob") as (site, said):
        assert "has no link (" in said.err
        assert "the spool is read" in said.err
        lines = "".join(f"{number}\n" for number in range(1000))
        assert laptop.run_job(site, "seq", "0", "999").out == lines
