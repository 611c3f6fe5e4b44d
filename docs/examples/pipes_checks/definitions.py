"""What a payload can tell Dagster with stock dagster_pipes: metadata, the outcome of checks, log lines."""

import os

import dagster as dg

from dagster_slurmbus import ComputeResource, SlurmQueueConfig, SlurmResource


@dg.asset(
    kinds={"slurm", "csv"},
    check_specs=[
        dg.AssetCheckSpec("nothing_missing", asset="clean_readings"),
        dg.AssetCheckSpec("enough_left", asset="clean_readings", description="Means of fewer readings mean little."),
    ],
)
def clean_readings(context: dg.AssetExecutionContext, compute: ComputeResource):
    yield from compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "clean.py"),
        extra_files=[dg.file_relative_path(__file__, "readings.csv")],
        extras={"lowest": -30, "highest": 45, "at_least": 5},
    ).get_results()


compute = ComputeResource(
    mode=os.environ.get("COMPUTE", "local"),
    slurm=SlurmResource(
        site="cluster-alice", queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=1, mem="200M")
    ),
)

defs = dg.Definitions(assets=[clean_readings], resources={"compute": compute})
