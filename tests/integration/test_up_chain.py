"""The chain from a laptop to compute nodes when a link of it breaks: what is said of it, and what mends it."""

from __future__ import annotations

import os
import signal

from contract.bus_site import wait_until
from integration.laptops import Laptop, Said, processes, ssh_processes
from integration.logins import Logins
from integration.test_outages import frozen_controller
from slurmbus.bootstrap import journal
from slurmbus.bootstrap.bus_process import bus_of
from slurmbus.bootstrap.installing import Layout
from slurmbus.bootstrap.keeper import keeper_of
from slurmbus_cluster import Cluster

USER = "alice"


def doctor(laptop: Laptop, site: str, *more: str) -> Said:
    return laptop.slurmbus("doctor", site, *more, ok=False)


def broken(said: Said) -> dict[str, str]:
    """Give the links that are called broken, each with what is said of it and of what to do."""
    found, last = {}, ""
    for line in said.out.splitlines():
        if line.startswith("NO  "):
            last, _, words = line[4:].partition("  ")
            found[last] = words.strip()
        elif "→" in line and last:
            found[last] += f" → {line.partition('→')[2].strip()}"
        else:
            last = ""
    assert said.code == (3 if found else 0)
    assert ("jobs come through" in said.err) is not bool(found)
    return found


def test_the_doctor_names_the_link_that_is_broken_and_what_mends_it(
    laptop: Laptop, logins: Logins, cluster: Cluster
) -> None:
    with laptop.up(USER, "login", "--supervisor", "detached", "--no-tunnel-relogin", "--no-trial") as (site, _):
        assert broken(doctor(laptop, site)) == {}
        assert broken(doctor(laptop, site, "--trial", "--login")) == {}

        with frozen_controller(cluster):
            told = broken(doctor(laptop, site))["scheduler"]
            assert "doesn't answer" in told
            assert told.endswith("→ is Slurm down there? Running jobs go on")
        wait_until(lambda: broken(doctor(laptop, site)) == {}, "the agent to notice that it is back", 120)

        for pid in processes(cluster, "login", USER, "slurmbus_agent run"):
            cluster.exec("login", ["kill", "-KILL", str(pid)])
        wait_until(
            lambda: "silent for" in broken(doctor(laptop, site)).get("agent", ""), "heartbeats to be missed", 120
        )
        told = broken(doctor(laptop, site, "--login"))
        assert told["agent"].endswith(f"→ look on the login node: slurmbus doctor {site} --login")
        assert f"→ slurmbus up {site}; 'slurmbus logs {site}' shows its last words" in told["process"]
        laptop.slurmbus("up", site, "--no-trial")
        assert broken(doctor(laptop, site)) == {}

        (tunnel,) = ssh_processes([str(logins.config)])
        os.kill(tunnel, signal.SIGKILL)
        told = broken(doctor(laptop, site))
        assert told["connection"].startswith(
            "the tunnel is gone (the machine slept, or the network changed); jobs go on"
        )
        assert told["connection"].endswith(f"→ log in once: slurmbus up {site}")
        laptop.slurmbus("up", site, "--no-trial")

        bus_of(laptop.home).stop()
        assert broken(doctor(laptop, site))["bus"].endswith(f"→ slurmbus up {site}")
        laptop.slurmbus("up", site, "--no-trial")
        wait_until(lambda: broken(doctor(laptop, site)) == {}, "the agent to be back on the bus", 120)

        cluster.exec("login", ["pkill", "-KILL", "-u", USER, "-f", "slurmbus_agent"])
        done = journal.read(laptop.home, site)
        assert done is not None
        command = Layout(done.install_folder, site).command
        cluster.exec("login", ["mv", command, f"{command}.away"])
        told = broken(doctor(laptop, site, "--login"))
        assert told["installed"] == f"there is no {command} → slurmbus up {site}"
        cluster.exec("login", ["mv", f"{command}.away", command])


def test_a_look_at_the_login_node_is_not_taken_for_the_tunnel(laptop: Laptop, logins: Logins) -> None:
    with laptop.up(USER, "login", "--no-tunnel-relogin", "--no-trial") as (site, _):
        (tunnel,) = ssh_processes([str(logins.config)])
        assert broken(doctor(laptop, site, "--login")) == {}
        assert ssh_processes([str(logins.config)]) == [tunnel]
        os.kill(tunnel, signal.SIGKILL)
        assert "connection" in broken(doctor(laptop, site, "--login"))
        assert "the scheduler is" in laptop.slurmbus("logs", site, "--login").out
        assert not ssh_processes([str(logins.config)])
        assert broken(doctor(laptop, site))["connection"].startswith("the tunnel is gone")


def test_a_tunnel_that_may_log_in_again_does_so_by_itself(laptop: Laptop, logins: Logins, cluster: Cluster) -> None:
    with laptop.up(USER, "login", "--tunnel-relogin", "--no-trial") as (site, _):
        assert keeper_of(laptop.home, site).process is not None
        for _ in range(2):
            (tunnel,) = ssh_processes([str(logins.config)])
            logged_in = logins.accepted("login", USER)
            os.kill(tunnel, signal.SIGKILL)
            wait_until(
                lambda gone=tunnel: ssh_processes([str(logins.config)]) not in ([], [gone]), "the next tunnel", 120
            )
            assert laptop.run_job(site, "id", "-un").out == f"{USER}\n"
            assert logins.accepted("login", USER) == logged_in + 1
        assert broken(doctor(laptop, site)) == {}
    assert keeper_of(laptop.home, site).process is None
    assert not ssh_processes([str(logins.config)])


def test_a_login_that_opens_no_tunnel_is_tried_again(laptop: Laptop, logins: Logins, cluster: Cluster) -> None:
    with laptop.up(USER, "login", "--tunnel-relogin", "--no-trial") as (site, said):
        folder = said.err.partition("nats+unix://")[2].partition(f"/{site}.sock")[0]
        cluster.exec("login", ["chmod", "500", folder])  # the old socket can't be removed, nor a new one be made
        logged_in = logins.accepted("login", USER)
        (tunnel,) = ssh_processes([str(logins.config)])
        os.kill(tunnel, signal.SIGKILL)
        wait_until(lambda: logins.accepted("login", USER) > logged_in + 1, "a second login", 120)
        cluster.exec("login", ["chmod", "700", folder])
        assert laptop.run_job(site, "id", "-un").out == f"{USER}\n"
        assert broken(doctor(laptop, site)) == {}
