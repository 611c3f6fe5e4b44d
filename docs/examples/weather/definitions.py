"""A small real graph: weather records -> features (two tasks) -> a model (a GPU) -> a report back here.

The same assets run as processes of this machine or as Slurm jobs: SLURMBUS_DEMO_MODE says which, ``local`` or
``slurm``; for ``slurm`` SLURMBUS_DEMO_SITE names the site.
"""

import os
import shutil
from pathlib import Path

import dagster as dg
from vega_datasets import local_data

from dagster_slurmbus import (
    BashLauncher,
    BusResource,
    ComputeResource,
    ExecutionMode,
    SlurmQueueConfig,
    SlurmResource,
)

PAYLOADS = Path(__file__).parent / "payloads"
RESULTS = Path(os.environ.get("SLURMBUS_DEMO_RESULTS", "results"))
MODE = os.environ.get("SLURMBUS_DEMO_MODE", ExecutionMode.LOCAL)

slurm = SlurmResource(
    bus=BusResource.from_env(prefix="SLURMBUS"),
    site=os.environ.get("SLURMBUS_DEMO_SITE", "demo"),
    queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=1, mem="500M"),
)
compute = ComputeResource(
    mode=MODE,
    slurm=slurm if MODE == ExecutionMode.SLURM else None,
    default_launcher=BashLauncher(),
)


@dg.asset(kinds={"csv"}, group_name="weather")
def weather() -> dg.MaterializeResult:
    """Four years of daily weather in Seattle, which the package vega_datasets carries."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "weather.csv"
    records = local_data.seattle_weather()
    records.to_csv(path, index=False, date_format="%Y-%m-%d")
    return dg.MaterializeResult(metadata={"days": len(records), "path": dg.MetadataValue.path(str(path))})


@dg.asset(deps=[weather], kinds={"slurm"}, group_name="weather", required_resource_keys={"compute"})
def features(context: dg.AssetExecutionContext):
    """What is known of each day, made by two tasks."""
    completed = context.resources.compute.run(
        context=context,
        payload_path=PAYLOADS / "features.py",
        extra_files=[RESULTS / "weather.csv"],
        outputs=["features.csv"],
        options={"ntasks": 2},
        extras={"tasks": 2},
    )
    shutil.copy(completed.outputs["features.csv"], RESULTS / "features.csv")
    yield from completed.get_results()


@dg.asset(deps=[features], kinds={"slurm", "python"}, group_name="weather", required_resource_keys={"compute"})
def model(context: dg.AssetExecutionContext):
    """A model of tomorrow's maximum temperature, with a plot of how good it is."""
    completed = context.resources.compute.run(
        context=context,
        payload_path=PAYLOADS / "model.py",
        extra_files=[RESULTS / "features.csv"],
        outputs=["plot.png", "model.json"],
        options={"partition": "gpu", "gpus_per_node": "1"},
    )
    shutil.copy(completed.outputs["plot.png"], RESULTS / "plot.png")
    yield from completed.get_results()


@dg.asset(deps=[model], kinds={"markdown"}, group_name="weather")
def report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """A page with the plot that came back from the job."""
    latest = context.instance.get_latest_materialization_event(dg.AssetKey("model"))
    assert latest is not None
    assert latest.asset_materialization is not None
    error = latest.asset_materialization.metadata["mean_error"].value
    path = RESULTS / "report.md"
    path.write_text(f"# Tomorrow's weather\n\nOff by {error:.1f} °C on average.\n\n![plot](plot.png)\n")
    return dg.MaterializeResult(
        metadata={"path": dg.MetadataValue.path(str(path)), "plot": dg.MetadataValue.path(str(RESULTS / "plot.png"))}
    )


defs = dg.Definitions(assets=[weather, features, model, report], resources={"compute": compute})
