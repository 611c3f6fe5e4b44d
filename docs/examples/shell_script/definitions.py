"""A batch script that has run with sbatch so far, unchanged."""

import os

import dagster as dg

from dagster_slurmbus import BashLauncher, ComputeResource, SlurmQueueConfig, SlurmResource

# What one types before sbatch: module load gcc/14 solver/2.1. Here a function is all that there is to load.
MODULES = r"""
solve() { awk -v steps="$2" 'BEGIN { x = 1; for (i = 0; i < steps; i++) x = (x + 2 / x) / 2; printf "%.6f\n", x }'; }
export -f solve
"""


@dg.asset(kinds={"slurm", "bash"})
def simulation(context: dg.AssetExecutionContext, compute: ComputeResource):
    completed = compute.run(
        context=context,
        payload_path=dg.file_relative_path(__file__, "simulate.sh"),
        payload_args=["cavity", "20"],
        outputs=["cavity.result"],
        # The script's #SBATCH lines are comments to bash: what they ask for stands here.
        options={"ntasks": 1, "cpus": 2, "mem": "200M", "time_limit": "00:05:00"},
        launcher=BashLauncher(preamble=os.environ.get("MODULES", MODULES)),
    )
    context.add_output_metadata({"result": float(completed.outputs["cavity.result"].read_text())})
    return completed.get_materialize_result()


compute = ComputeResource(
    mode=os.environ.get("COMPUTE", "local"),
    slurm=SlurmResource(site="cluster-alice", queue=SlurmQueueConfig(partition="main")),
)

defs = dg.Definitions(assets=[simulation], resources={"compute": compute})
