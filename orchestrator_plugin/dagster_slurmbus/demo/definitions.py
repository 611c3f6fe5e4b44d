"""Samples -> an estimate of pi -> a report: two jobs and one asset that runs here.

``SLURMBUS_DEMO_SITE`` names the site on which the jobs run; without it they are processes of this machine.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_slurmbus import (
    BashLauncher,
    BusResource,
    ComputeResource,
    ExecutionMode,
    SlurmQueueConfig,
    SlurmResource,
)

PAYLOADS = Path(__file__).parent / "payloads"
RESULTS = Path(os.environ["SLURMBUS_DEMO_RESULTS"])
SITE = os.environ.get("SLURMBUS_DEMO_SITE")

compute = ComputeResource(
    mode=ExecutionMode.SLURM if SITE else ExecutionMode.LOCAL,
    slurm=SlurmResource(
        bus=BusResource.from_env(prefix="SLURMBUS"),
        site=SITE,
        queue=SlurmQueueConfig(
            partition=os.environ.get("SLURMBUS_DEMO_PARTITION"), time_limit="00:05:00", cpus=2, mem="500M"
        ),
    )
    if SITE
    else None,
    default_launcher=BashLauncher(),
)


def _job(context: dg.AssetExecutionContext, payload: str, needs: list[str], gives: str) -> Iterator[Any]:
    completed = context.resources.compute.run(
        context=context,
        payload_path=PAYLOADS / payload,
        extra_files=[RESULTS / name for name in needs],
        outputs=[gives],
    )
    shutil.copy(completed.outputs[gives], RESULTS / gives)
    yield from completed.get_results()


@dg.asset(kinds={"slurm", "python"}, group_name="demo", required_resource_keys={"compute"})
def samples(context: dg.AssetExecutionContext) -> Iterator[Any]:
    """Darts thrown at a square by two processes."""
    yield from _job(context, "samples.py", [], "hits.csv")


@dg.asset(deps=[samples], kinds={"slurm", "python"}, group_name="demo", required_resource_keys={"compute"})
def estimate(context: dg.AssetExecutionContext) -> Iterator[Any]:
    """What they say of pi."""
    yield from _job(context, "estimate.py", ["hits.csv"], "pi.json")


@dg.asset(deps=[estimate], kinds={"markdown"}, group_name="demo")
def report() -> dg.MaterializeResult[Any]:
    """A line about it, written here."""
    found = json.loads((RESULTS / "pi.json").read_text())
    path = RESULTS / "report.md"
    path.write_text(
        f"# π\n\n{found['pi']:.5f} ± {found['standard_error']:.5f}, after {found['darts']:,} darts.\n",
        encoding="utf-8",
    )
    return dg.MaterializeResult(metadata={"path": dg.MetadataValue.path(str(path))})


defs = dg.Definitions(assets=[samples, estimate, report], resources={"compute": compute})
