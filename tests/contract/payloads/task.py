"""One task of an array: says who it is, reports to Dagster, and fails when it is told to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    extras = pipes.extras
    folder = Path(extras["folder"])
    name = sys.argv[1] if len(sys.argv) > 1 else pipes.partition_key
    with (folder / f"ran-{name}").open("a") as ran:
        ran.write("once\n")
    print(f"hello from {name}", flush=True)
    pipes.log.info(f"task {name} of {os.environ['SLURM_ARRAY_TASK_ID']}")
    trouble = folder / f"fail-{name}"
    if trouble.exists():
        trouble.unlink()
        print(f"{name} can't go on", file=sys.stderr)
        sys.exit(7)
    metadata = {"name": name, "rows": extras.get("rows", 0)}
    pipes.report_asset_materialization(metadata=metadata, data_version=f"v-{name}")
    if extras.get("check"):
        pipes.report_asset_check("complete", passed=name != "c")
    pipes.report_custom_message({"name": name, "partition": pipes.partition_key if pipes.is_partition_step else None})
    Path("result.txt").write_text(f"result of {name}\n")
