"""The graph that the Dagster steps of a run belong to: one job per asset, followed through Slurmbus like any user's."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import json
import os
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_slurmbus import BusResource, ComputeResource, ExecutionMode, SlurmQueueConfig, SlurmResource

HERE = Path(__file__).parent
PLANS = json.loads(os.environ.get("CHAOS_STEPS", "[]"))
"""What each step's payload shall do; see `workload.plan_steps`."""
TRIES = 6


def asset_of(plan: dict[str, object]) -> dg.AssetsDefinition:
    """Make one asset."""

    @dg.asset(
        name=str(plan["id"]),
        required_resource_keys={"compute"},
        retry_policy=dg.RetryPolicy(max_retries=TRIES, delay=0.5),
    )
    def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        completed = context.resources.compute.run(
            context=context,
            payload_path=HERE / "step_payload.py",
            payload_args=[json.dumps(plan)],
            extra_files=[HERE / "payload.py"],
        )
        result: dg.MaterializeResult[Any] = completed.get_materialize_result()
        return result

    return made


compute = ComputeResource(
    mode=ExecutionMode.SLURM,
    slurm=SlurmResource(
        bus=BusResource.from_env(prefix="SLURMBUS"),
        site=os.environ.get("CHAOS_SITE", "chaos-alice"),
        queue=SlurmQueueConfig(time_limit="00:05:00"),
    ),
)
steps = dg.Definitions(
    assets=[asset_of(plan) for plan in PLANS],
    jobs=[dg.define_asset_job("steps")],
    resources={"compute": compute},
).resolve_job_def("steps")
