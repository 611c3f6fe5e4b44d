"""The manual's two blocks, word for word but for the site's name, and an asset that only a Terminate ends."""

import dagster as dg

from dagster_slurmbus import (
    BashLauncher,
    BusResource,
    ComputeResource,
    ExecutionMode,
    PipesSlurmClient,
    SlurmQueueConfig,
    SlurmResource,
)


@dg.asset(kinds={"slurm"})
def features(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    return slurm.run(
        context=context,
        command=["python3", "features.py"],
        files=[dg.file_relative_path(__file__, "features.py")],
        outputs=["plot.png"],
        env={"YEAR": "2026"},
        extras={"a": 1},
    ).get_materialize_result()


compute = ComputeResource(
    mode=ExecutionMode.SLURM,
    slurm=SlurmResource(
        bus=BusResource.from_env(prefix="SLURMBUS"),
        site="cluster-alice",
        queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=2, mem="1G"),
        remote_base="/home/alice/dagster_runs",
    ),
    default_launcher=BashLauncher(),
)


@dg.asset(required_resource_keys={"compute"})
def train_model(context: dg.AssetExecutionContext):
    completed = context.resources.compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "train.py"),
        extra_env={"EXPERIMENT": context.run.run_id},
    )
    yield from completed.get_results()


@dg.asset
def endless(context: dg.AssetExecutionContext, slurm: PipesSlurmClient):
    return slurm.run(context=context, command=["sleep", "86399"]).get_materialize_result()


terminated = dg.Definitions(
    assets=[endless],
    jobs=[dg.define_asset_job("terminated")],
    resources={"slurm": PipesSlurmClient(site="cluster-alice")},
).resolve_job_def("terminated")
