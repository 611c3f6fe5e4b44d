"""The asset of the guide on switching over, as it looks afterwards."""

import os

import dagster as dg

from dagster_slurmbus import BashLauncher, ComputeResource, SiteFolder, SlurmQueueConfig, SlurmResource

compute = ComputeResource(
    mode=os.environ.get("COMPUTE", "local"),
    slurm=SlurmResource(
        site="cluster-alice",
        queue=SlurmQueueConfig(partition="main", nodes=1, time_limit="00:30:00", cpus=2, mem="1G", signal="B:TERM@120"),
        remote_base="/home/alice/pipelines",
    ),
    default_launcher=BashLauncher(),
    environment=SiteFolder(os.environ.get("DEPLOYED_ENV", "/opt/payload")),
)


@dg.asset
def trained(context: dg.AssetExecutionContext, compute: ComputeResource):
    completed = compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "train.py"),
        extra_env={"EPOCHS": "200"},
        extras={"rate": 0.1},
        extra_slurm_opts={"cpus_per_task": 4, "qos": "normal"},
    )
    yield from completed.get_results()


defs = dg.Definitions(assets=[trained], resources={"compute": compute})
