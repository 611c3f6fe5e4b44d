# Loses what keeps the other node in the cluster, and goes on: Ray itself there, or with an argument something else.
import os
import signal
import sys
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WHAT = sys.argv[1] if sys.argv[1:] else "raylet"

ray.init("auto")
here = ray.get_runtime_context().get_node_id()
other = next(node["NodeID"] for node in ray.nodes() if node["NodeID"] != here)


def words(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().split("\0")
    except OSError:  # it has ended
        return []


def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def watches():
    """The watch of this very job: a child of what started this payload, as this is."""
    with open(f"/proc/{os.getppid()}/task/{os.getppid()}/children") as file:
        return [int(pid) for pid in file.read().split() if "--ray-watch" in words(pid)]


@ray.remote(max_retries=0)
def lose(what):
    pid = os.getppid()
    while what == "helper" and "--node" not in words(pid):  # Ray runs below its node's helper
        pid = parent(pid)
    os.kill(pid, signal.SIGSTOP if what == "watch" else signal.SIGKILL)


if WHAT == "watch":  # nothing has ended on a node whose Ray is frozen: only the watch can tell
    before = watches()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    while not (after := watches()) or set(after) & set(before):
        time.sleep(0.1)
    print("watched again", len(before), len(after))
lose.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other, soft=False)).remote(WHAT)
while sum(node["Alive"] for node in ray.nodes()) > 1:
    time.sleep(0.1)


@ray.remote
def on():
    return os.uname().nodename


print("went on", ray.get(on.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()))
while WHAT != "raylet" and not Path("go-on").exists():
    time.sleep(0.1)
sys.exit(7)
