"""What the agent costs the login node and the controller: idle, and with many jobs, on the real cluster.

``IDLE_SECONDS`` (600) and ``GUEST_JOBS`` (1000) make it shorter.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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
SAMPLES = 10
MIB = 1024 * 1024
PATIENCE = 900.0


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


def test_many_jobs(cluster: Cluster, alice_agent: AgentProcess, alice: SiteClient) -> None:
    options = JobOptions(mem_per_cpu_mib=100, time_limit_minutes=600)
    with ThreadPoolExecutor(16) as pool:
        began = time.monotonic()
        list(pool.map(lambda _: alice.submit(spec("sleep", "36000", options=options)), range(JOBS)))
        wait_until(
            lambda: sum(vitals(alice).jobs.get(state, 0) for state in ("PENDING", "RUNNING")) == JOBS,
            f"{JOBS} jobs in Slurm",
            PATIENCE,
        )
        say(
            f"\n{JOBS} jobs, submitted one by one in {time.monotonic() - began:.0f} s: "
            f"{heartbeat(alice).scheduler.calls}"
        )
    try:
        first, looks, counted = heartbeat(alice).scheduler, vitals(alice), calls_of(cluster, "alice")
        began = time.monotonic()
        figures, costs = sampled(cluster, alice_agent, alice, IDLE_SECONDS)
        last, seen, took = heartbeat(alice).scheduler, vitals(alice), time.monotonic() - began
        say(f"\n{JOBS} jobs for {took:.0f} s: {seen.jobs}")
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
        wait_until(lambda: not vitals(alice).jobs, "the end of all jobs", PATIENCE)
