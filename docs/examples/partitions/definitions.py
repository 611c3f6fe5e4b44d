"""A day's file per partition: a backfill is one Slurm job per day."""

import os

import dagster as dg

from dagster_slurmbus import ComputeResource, SlurmQueueConfig, SlurmResource


@dg.asset(kinds={"slurm"}, partitions_def=dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-11"))
def sunshine(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context, payload_path=dg.file_relative_path(__file__, "sunshine.py")
    ).get_materialize_result()


compute = ComputeResource(
    mode=os.environ.get("COMPUTE", "local"),
    slurm=SlurmResource(
        site="cluster-alice",
        queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=1, mem="200M"),
        env={"DATA_DIR": "/home/alice/sunshine"},
    ),
    local_env={"DATA_DIR": os.environ.get("LOCAL_DATA_DIR", "/tmp/sunshine")},
)

# The step waits for its job and computes nothing: it needs no process beside its run's.
defs = dg.Definitions(assets=[sunshine], resources={"compute": compute}, executor=dg.in_process_executor)
