"""One asset on a laptop, on one cluster and on another, with the data where each of them has it.

Where it runs is one setting: COMPUTE=local on a laptop; elsewhere the launchpad's tag ``slurmbus/site: cluster-bob`` or
``resources: {compute: {config: {site: cluster-bob}}}`` sends a run to the second site when the first one is full.
"""

import os

import dagster as dg

from dagster_slurmbus import BashLauncher, ComputeResource, SiteFolder, SlurmQueueConfig, SlurmResource, SlurmSite


@dg.asset(
    kinds={"slurm"},
    metadata={"slurmbus/options": {"cpus": 2}, "slurmbus/options/cluster-bob": {"partition": "gpu", "cpus": 1}},
)
def measurements(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "measure.py"),
        payload_args=["20"],
    ).get_materialize_result()


@dg.asset(kinds={"slurm"}, deps=[measurements])
def mean(context: dg.AssetExecutionContext, compute: ComputeResource):
    return compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "mean.py"),
        cwd=compute.site_env(context)["DATA_DIR"],
    ).get_materialize_result()


# The folder lies on the shared file system there and on the disk here: the data never travel, their place is a setting.
# So is what payloads run in: an environment that the first site has, a Python and a preamble on the second one.
compute = ComputeResource(
    mode=os.environ.get("COMPUTE", "local"),
    slurm=SlurmResource(
        site="cluster-alice",
        queue=SlurmQueueConfig(partition="main", time_limit="00:10:00"),
        env={"DATA_DIR": "/home/alice/measurements"},
        environment=SiteFolder("/opt/payload"),
    ),
    other_sites=[
        SlurmSite(
            site="cluster-bob",
            queue=SlurmQueueConfig(partition="short", time_limit="00:01:00"),
            env={"DATA_DIR": "/home/bob/measurements"},
            default_launcher=BashLauncher(python="/opt/payload/bin/python", preamble="export TUNED_FOR=cluster-bob"),
        )
    ],
    local_env={"DATA_DIR": os.environ.get("LOCAL_DATA_DIR", "/tmp/measurements")},
)

defs = dg.Definitions(assets=[measurements, mean], resources={"compute": compute})
