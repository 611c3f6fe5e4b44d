"""How long a Ray cluster over two nodes of the real cluster takes to start, and to go when its payload has ended.

``RAY_ROUNDS`` (5) says how often. The times are those of one clock, since the cluster's hosts share this machine's.
"""

from __future__ import annotations

import os
import re
import statistics
import threading
from dataclasses import dataclass

import pytest

from contract.bus_site import wait_until
from integration.jobs import Story
from integration.test_ray import job, submit
from slurmbus.client import SiteClient
from slurmbus_cluster import Cluster
from slurmbus_protocol.states import JobState

pytest_plugins = ["integration.conftest"]

ROUNDS = int(os.environ.get("RAY_ROUNDS", "5"))
STOPPED_WITHIN = 3.0
"""Seconds from the payload's end until nothing of Ray is left on any node."""
NODES = ("c1", "c2")
PAYLOAD = """
import os, time, ray
ray.init("auto")
ray.get([ray.remote(lambda: os.uname().nodename).remote() for _ in range(8)])
print("attached", flush=True)
while not os.path.exists("go-on"):
    time.sleep(0.02)
print("ended at", time.time(), flush=True)
"""
LOOK = """
import glob, os, pwd, shutil, time

def running():
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat("/proc/" + name).st_uid == alice:
                return True
        except FileNotFoundError:
            pass
    return False

alice = pwd.getpwnam("alice").pw_uid
assert running(), "nothing runs here"
open("/tmp/looking", "w").close()
while running():
    time.sleep(0.01)
gone = time.time()
os.remove("/tmp/looking")
folders = glob.glob("/tmp/ray-*")
for folder in folders:
    shutil.rmtree(folder)
print(gone, len(folders))
"""
"""Tells when Alice's last process on a node has gone, and how many folders of Ray's lie there then."""


@dataclass
class Round:
    """The seconds of one job."""

    ready: float
    job_ended: float
    nothing_left: float
    folders: int


class Look(threading.Thread):
    """Looks on one node until nothing is left there."""

    def __init__(self, cluster: Cluster, host: str) -> None:
        super().__init__(name=f"look on {host}")
        self._cluster = cluster
        self._host = host
        self.gone: float | None = None
        self.folders = 0

    def run(self) -> None:
        gone, folders = self._cluster.exec(self._host, ["python3", "-c", LOOK], timeout=600).stdout.split()
        self.gone, self.folders = float(gone), int(folders)

    def looks(self) -> bool:
        return self._cluster.exec(self._host, ["test", "-e", "/tmp/looking"], check=False).exit_code == 0


def measured(cluster: Cluster, client: SiteClient, *, dashboard: bool) -> Round:
    key = submit(client, job("bench.py", dashboard=dashboard), PAYLOAD)
    story, looks = Story(), [Look(cluster, host) for host in NODES]
    for event in client.follow(key):
        story.hear(event)
        if "attached" in story.stdout and looks[0].ident is None:
            for look in looks:
                look.start()
            for look in looks:
                wait_until(look.looks, "somebody to look", 60)
            running = client.record(key)
            assert running is not None
            cluster.exec("login", ["touch", f"{running.work_dir}/go-on"], user="alice")
    assert story.record.state is JobState.COMPLETED, story.stderr
    gone = []
    for look in looks:
        look.join(60)
        assert look.gone is not None, f"{look.name}: something is left"
        gone.append(look.gone)
    ended, ready = story.stdout.split()[-1], re.search(r"is ready on c1, c2 after ([\d.]+) s", story.stderr)
    job_ended = story.record.starts[-1].ended_at
    assert ready is not None
    assert job_ended is not None
    return Round(
        ready=float(ready[1]),
        job_ended=job_ended - float(ended),
        nothing_left=max(gone) - float(ended),
        folders=sum(look.folders for look in looks),
    )


def test_start_and_stop(cluster: Cluster, alice: SiteClient) -> None:
    measured(cluster, alice, dashboard=True)  # so that Ray's files have been read once
    rounds: dict[str, list[Round]] = {name: [] for name in ("with dashboard", "without dashboard")}
    for _ in range(ROUNDS):  # in turn: what else this machine does meanwhile is the same for both
        for name, found in rounds.items():
            found.append(measured(cluster, alice, dashboard=name == "with dashboard"))
    columns = ("ready", "job_ended", "nothing_left")
    print(f"\nRay on two nodes, {ROUNDS} rounds: median seconds (least to most)")
    print(f"{'':>20}{'until ready':>24}{'end to end of job':>24}{'end to nothing left':>24}")
    for name, found in rounds.items():
        values = [[getattr(one, column) for one in found] for column in columns]
        cells = [f"{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})" for of in values]
        print(f"{name:>20}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    print(f"folders left behind: {sum(one.folders for found in rounds.values() for one in found)}")
    stops = [max(one.job_ended, one.nothing_left) for found in rounds.values() for one in found]
    if (median := statistics.median(stops)) > STOPPED_WITHIN:
        pytest.fail(f"the median stop took {median:.2f} s, more than {STOPPED_WITHIN:g} s")
