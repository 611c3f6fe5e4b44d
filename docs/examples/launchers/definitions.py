"""Three launchers at work: an own one, Ray over all nodes of a job, and a script of any language."""

import os

import dagster as dg
from tool_launcher import ToolLauncher

from dagster_slurmbus import BashLauncher, ComputeResource, RayLauncher, SlurmQueueConfig, SlurmResource

PYTHON = os.environ.get("PAYLOAD_PYTHON", "python3")


@dg.asset
def pinned(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "pinned.py"),
        launcher=ToolLauncher(tool=["taskset", "--cpu-list", "0"]),  # or perf stat -o …, nsys profile -o …
    ).get_materialize_result()


@dg.asset
def words(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "words.awk"),
        payload_args=["words.awk"],
        launcher=BashLauncher(interpreter="awk -f"),
        outputs=["count.txt"],
    ).get_materialize_result()


@dg.asset
def simulated(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "simulate.py"),
        resource_requirements={"framework": "ray", "nodes": 2, "tasks": 2, "cpus": 2, "memory_gb": 1.5},
    ).get_materialize_result()


defs = dg.Definitions(
    assets=[pinned, words, simulated],
    resources={
        "compute": ComputeResource(
            mode=os.environ.get("COMPUTE", "local"),
            slurm=SlurmResource(site="cluster-alice", queue=SlurmQueueConfig(partition="main", time_limit="00:10:00")),
            default_launcher=RayLauncher(python=PYTHON, preamble="export OMP_NUM_THREADS=1"),
        )
    },
)
