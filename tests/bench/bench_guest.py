"""What the agent costs the login node and the controller: idle, and with many jobs, on the real cluster.

``IDLE_SECONDS`` (600), ``GUEST_JOBS`` (1000) and ``GUEST_RUNNING`` (200) make it shorter.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from contract.bus_site import wait_until
from guest_lab import MEASURE, Cost, cpu_minutes_a_month
from integration.jobs import run, spec
from slurmbus.client import SiteClient
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import Heartbeat, JobOptions, Vitals

pytest_plugins = ["integration.conftest"]

IDLE_SECONDS = float(os.environ.get("IDLE_SECONDS", "600"))
JOBS = int(os.environ.get("GUEST_JOBS", "1000"))
RUNNING = int(os.environ.get("GUEST_RUNNING", "200"))
"""At once: each starts a runner, and of 1,000 on two cores a quarter had ended before all were there."""
SAMPLES = 10
MIB = 1024 * 1024
PATIENCE = 900.0
MIB_A_JOB = 30
"""What a runner and a sleeping payload need."""


def say(line: str) -> None:
    print(line, flush=True)
    sys.stdout.flush()


def heartbeat(client: SiteClient) -> Heartbeat:
    found = [status.heartbeat for status in client.heartbeats() if status.heartbeat.leader]
    assert len(found) == 1
    return found[0]


def vitals(client: SiteClient) -> Vitals:
    return heartbeat(client).vitals


def cost(cluster: Cluster, agent: AgentProcess, client: SiteClient) -> Cost:
    pid = str(heartbeat(client).pid)
    return Cost.read(cluster.exec(agent.host, ["python3", "-c", MEASURE, pid], user=agent.user).stdout)


def calls_of(cluster: Cluster, user: str) -> dict[str, int]:
    """Give what the controller itself counted for a user. Source: sdiag(1), the part by user."""
    text = cluster.exec("ctld", ["sdiag"]).stdout
    by_user = text.partition("by user")[2]
    found = re.search(rf"^\s*{user}\s*\(\s*\d+\) count:(\d+)", by_user, re.MULTILINE)
    return {"all": int(found[1]) if found else 0}


def sampled(
    cluster: Cluster, agent: AgentProcess, client: SiteClient, seconds: float
) -> tuple[list[float], list[Cost]]:
    """Give CPU-minutes in 30 days, by each of some samples, and what was seen."""
    figures, costs = [], [cost(cluster, agent, client)]
    for _ in range(SAMPLES):
        began = time.monotonic()
        time.sleep(seconds / SAMPLES)  # what is measured is that nothing happens
        costs.append(cost(cluster, agent, client))
        figures.append(cpu_minutes_a_month(costs[-1].cpu - costs[-2].cpu, time.monotonic() - began))
    return figures, costs


def show(name: str, values: list[float], unit: str) -> None:
    say(f"{name:>34}: median {statistics.median(values):8.2f} {unit}, from {min(values):.2f} to {max(values):.2f}")


def show_costs(costs: list[Cost]) -> None:
    show("resident memory, all processes", [seen.rss / MIB for seen in costs], "MiB")
    show("its share of memory (PSS)", [seen.pss / MIB for seen in costs], "MiB")
    show("processes", [float(seen.processes) for seen in costs], "")
    show("open files", [float(seen.files) for seen in costs], "")
    show("threads", [float(seen.threads) for seen in costs], "")


def test_idle(cluster: Cluster, alice_agent: AgentProcess, alice: SiteClient) -> None:
    run(alice, "true")  # so that Slurm has been asked, and accounting, which comes later
    wait_until(lambda: heartbeat(alice).scheduler.calls.get("accounting", 0) > 0, "accounting's figures", 180.0)
    wait_until(
        lambda: not vitals(alice).jobs and not vitals(alice).scheduler_pid, "the scheduler's process to go", 180.0
    )
    calls, looks, counted = heartbeat(alice).scheduler.calls, vitals(alice).stat_calls, calls_of(cluster, "alice")
    figures, costs = sampled(cluster, alice_agent, alice, IDLE_SECONDS)
    say(f"\nidle for {IDLE_SECONDS:.0f} s, native scheduler:")
    show("CPU time of all processes", figures, "min in 30 days")
    show_costs(costs)
    after = heartbeat(alice).scheduler.calls
    say(
        f"{'calls to Slurm':>34}: {sum(after.values()) - sum(calls.values())}; the controller counted "
        f"{calls_of(cluster, 'alice')['all'] - counted['all']}"
    )
    say(f"{'looks at the spool':>34}: {vitals(alice).stat_calls - looks}")


@contextmanager
def larger_nodes(cluster: Cluster, jobs: int) -> Iterator[None]:
    """Let the compute nodes pose as large enough for so many jobs at once; Slurm reads their sizes when it starts."""
    sizes = "CPUs=8 RealMemory=4000"
    larger = f"CPUs={jobs // 2 + 8} RealMemory={(jobs // 2 + 8) * MIB_A_JOB}"

    def change(old: str, new: str) -> None:
        for host in cluster.hosts:
            cluster.exec(host, ["sed", "-i", f"s/ {old} / {new} /", "/etc/slurm/slurm.conf"])
        cluster.daemon("restart", "slurmctld")
        for node in ("c1", "c2"):
            cluster.daemon("restart", "slurmd", node)
        cluster.wait_idle()

    change(sizes, larger)
    try:
        yield
    finally:
        change(larger, sizes)


def watch_many(cluster: Cluster, agent: AgentProcess, client: SiteClient, jobs: int, states: tuple[str, ...]) -> None:
    """Submit jobs one by one, wait until all of them are in one of the states, and say what they cost meanwhile."""
    wait_until(lambda: any(one.heartbeat.leader for one in client.heartbeats()), "the agent to serve")
    options = JobOptions(mem_per_cpu_mib=MIB_A_JOB if states == ("RUNNING",) else 100, time_limit_minutes=600)
    try:
        with ThreadPoolExecutor(16) as pool:
            began = time.monotonic()
            list(pool.map(lambda _: client.submit(spec("sleep", "36000", options=options)), range(jobs)))
            wait_until(
                lambda: sum(vitals(client).jobs.get(state, 0) for state in states) == jobs,
                f"{jobs} jobs that are {' or '.join(states)}",
                PATIENCE,
            )
            if states == ("RUNNING",):  # Slurm says so before the runners are there
                wait_until(lambda: vitals(client).link_connections == jobs, f"{jobs} runners connected", PATIENCE)
            say(
                f"\n{jobs} jobs, submitted one by one, {' or '.join(states)} after {time.monotonic() - began:.0f} s: "
                f"{heartbeat(client).scheduler.calls}"
            )
        first, looks, counted = heartbeat(client).scheduler, vitals(client), calls_of(cluster, "alice")
        began = time.monotonic()
        figures, costs = sampled(cluster, agent, client, IDLE_SECONDS)
        last, seen, took = heartbeat(client).scheduler, vitals(client), time.monotonic() - began
        say(f"\n{jobs} jobs for {took:.0f} s: {seen.jobs}")
        calls = {kind: number - first.calls.get(kind, 0) for kind, number in last.calls.items()}
        say(f"{'calls to Slurm a second':>34}: {sum(calls.values()) / took:.3f} {calls}")
        everything = calls_of(cluster, "alice")["all"] - counted["all"]
        say(f"{'counted by the controller':>34}: {everything / took:.3f} a second, all of this user's")
        records = {kind: number - looks.records_returned.get(kind, 0) for kind, number in seen.records_returned.items()}
        say(f"{'records returned':>34}: {records}")
        say(f"{'looks at the spool':>34}: {seen.stat_calls - looks.stat_calls}")
        say(f"{'runners connected':>34}: {seen.link_connections}")
        say(f"{'bytes to the bus a second':>34}: {(seen.bus_bytes_out - looks.bus_bytes_out) / took:.0f}")
        show("CPU time of all processes", figures, "min in 30 days")
        show_costs(costs)
    finally:
        cluster.exec("ctld", ["scancel", "--user=alice"])
        wait_until(lambda: not vitals(client).jobs, "the end of all jobs", PATIENCE)


def test_many_jobs(cluster: Cluster, alice_agent: AgentProcess, alice: SiteClient) -> None:
    watch_many(cluster, alice_agent, alice, JOBS, ("PENDING", "RUNNING"))


def test_many_running_jobs(cluster: Cluster, alice_agent: AgentProcess, alice: SiteClient) -> None:
    """Each with its runner, its connection and a process of its own, of some 10 MiB together."""
    with larger_nodes(cluster, RUNNING):
        watch_many(cluster, alice_agent, alice, RUNNING, ("RUNNING",))
