# Kills Ray on the node where the payload itself isn't running, and goes on.
import os
import signal
import sys
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init("auto")
here = ray.get_runtime_context().get_node_id()
other = next(node["NodeID"] for node in ray.nodes() if node["NodeID"] != here)


@ray.remote(max_retries=0)
def kill_raylet():
    os.kill(os.getppid(), signal.SIGKILL)


kill_raylet.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other, soft=False)).remote()
while sum(node["Alive"] for node in ray.nodes()) > 1:
    time.sleep(0.1)


@ray.remote
def on():
    return os.uname().nodename


print("went on", ray.get(on.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()))
sys.exit(7)
