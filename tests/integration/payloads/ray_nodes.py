# Works on every node of the cluster, and says what it sees.
import json
import os
import sys
import time
import urllib.error
import urllib.request

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init("auto")
gpus = int(sys.argv[1])


def open_to_others():
    """Give this user's folders in /tmp that others may enter: Ray's sockets lie below them."""
    mine = [one for one in os.scandir("/tmp") if one.name.startswith("ray-") and one.stat().st_uid == os.getuid()]
    return [one.path for one in mine if one.stat().st_mode & 0o077] if mine else ["none is there"]


@ray.remote(num_cpus=1, num_gpus=gpus)
def look(number):
    print(f"task {number} on {os.uname().nodename}")
    return (
        number,
        os.uname().nodename,
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        os.environ["FROM_PRE_START"],
        open_to_others(),
    )


nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
found = ray.get(
    [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(10 * (place + 1))
        for place, node in enumerate(nodes)
    ]
)
with open(f"{os.environ['SLURMBUS_SPOOL']}/{os.environ['SLURMBUS_START']}.facts") as file:
    facts = json.load(file)
page = urllib.request.urlopen(facts["ray_dashboard"]).status
try:
    api = urllib.request.urlopen(facts["ray_dashboard"] + "/api/jobs/").status
except urllib.error.HTTPError as error:
    api = error.code
resources = ray.cluster_resources()
print(
    "RESULT",
    json.dumps(
        {
            "sum": sum(one[0] for one in found),
            "hosts": sorted(one[1] for one in found),
            "gpus": [one[2] for one in found],
            "pre_start": sorted(one[3] for one in found),
            "open_to_others": [path for one in found for path in one[4]],
            "cpus": resources["CPU"],
            "all_gpus": resources.get("GPU", 0),
            "facts": facts,
            "page": page,
            "api_without_token": api,
            "address": os.environ["RAY_ADDRESS"],
            "ended_at": time.time(),
        }
    ),
)
# Ray hands on what tasks print a moment later.
until = time.monotonic() + 30
with open(f"{os.environ['SLURMBUS_SPOOL']}/{os.environ['SLURMBUS_START']}.stdout") as output:
    text = output.read()
    while text.count("task ") < len(nodes) and time.monotonic() < until:
        time.sleep(0.05)
        text += output.read()
