"""Files that go with a job and come back, and a plot that Dagster shows."""

import base64
import os
from pathlib import Path

import dagster as dg

from dagster_slurmbus import ComputeResource, SlurmQueueConfig, SlurmResource

HERE = Path(__file__).parent


@dg.asset(kinds={"slurm", "matplotlib"})
def tides(context: dg.AssetExecutionContext, compute: ComputeResource):
    completed = compute.run(
        context=context,
        payload_path=HERE / "tides.py",
        extra_files={"harbours/north.csv": HERE / "north.csv", "harbours/south.csv": HERE / "south.csv"},
        outputs=["plot.png", "summary.csv"],
    )
    context.add_output_metadata(
        {"plot": picture(completed.outputs["plot.png"]), "table": table(completed.outputs["summary.csv"])}
    )
    return completed.get_materialize_result()


def picture(path: Path) -> dg.MetadataValue:
    """Dagster shows markdown, and markdown may carry a picture; some 100 kB are fine."""
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})")


def table(path: Path) -> dg.MetadataValue:
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return dg.MetadataValue.table([dg.TableRecord(dict(zip(header, row, strict=True))) for row in rows])


compute = ComputeResource(
    mode=os.environ.get("COMPUTE", "local"),
    slurm=SlurmResource(
        site="cluster-alice", queue=SlurmQueueConfig(partition="main", time_limit="00:10:00", cpus=1, mem="500M")
    ),
)

defs = dg.Definitions(assets=[tides], resources={"compute": compute})
