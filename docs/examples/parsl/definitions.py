"""An asset whose payload brings its own parallelism: Parsl, over all nodes of the job."""

import dagster as dg

from dagster_slurmbus import ComputeResource, SiteFolder, SlurmQueueConfig, SlurmResource


@dg.asset(kinds={"slurm", "python"})
def primes(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "primes.py"),
        payload_args=["400000"],
        # One task a node: Parsl starts a pool there, with as many workers as the task has CPUs.
        options={"nodes": 2, "ntasks_per_node": 1, "cpus": 2},
        environment=SiteFolder("/opt/payload"),  # a virtual environment that lies on the site
    ).get_materialize_result()


compute = ComputeResource(
    mode="slurm",
    slurm=SlurmResource(
        site="cluster-alice",
        queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", mem_per_cpu="300M"),
    ),
)

defs = dg.Definitions(assets=[primes], resources={"compute": compute})
