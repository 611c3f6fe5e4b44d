"""Estimates pi on every CPU of every node of the job."""

import os
import random

import ray
from dagster_pipes import open_dagster_pipes


@ray.remote(scheduling_strategy="SPREAD")
def hits(seed: int, throws: int) -> tuple[int, str]:
    random.seed(seed)
    inside = sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(throws))
    return inside, os.uname().nodename


with open_dagster_pipes() as pipes:
    ray.init("auto")
    throws = 20_000
    cpus = int(ray.cluster_resources()["CPU"])
    found = ray.get([hits.remote(seed, throws) for seed in range(4 * cpus)])
    pi = 4 * sum(inside for inside, _ in found) / (throws * len(found))
    pipes.report_asset_materialization(
        metadata={"pi": pi, "cpus": cpus, "nodes": sum(node["Alive"] for node in ray.nodes())}
    )
