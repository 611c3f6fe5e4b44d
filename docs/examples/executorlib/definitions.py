"""An asset whose payload spreads Python functions over its job with executorlib."""

import dagster as dg

from dagster_slurmbus import ComputeResource, SiteFolder, SlurmQueueConfig, SlurmResource


@dg.asset(kinds={"slurm", "python"})
def lattice_constant(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "lattice.py"),
        # A worker is a step of the job with one task, so memory is asked for by CPU: each step gets its share.
        options={"nodes": 2, "ntasks_per_node": 2, "cpus": 1, "mem_per_cpu": "300M"},
        environment=SiteFolder("/opt/payload"),  # a virtual environment that lies on the site
    ).get_materialize_result()


compute = ComputeResource(
    mode="slurm",
    slurm=SlurmResource(site="cluster-alice", queue=SlurmQueueConfig(partition="main", time_limit="00:10:00")),
)

defs = dg.Definitions(assets=[lattice_constant], resources={"compute": compute})
