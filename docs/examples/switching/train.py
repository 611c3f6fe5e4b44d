"""Fits a line; the same file before and after."""

import os
import sys

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    rate, slope = pipes.get_extra("rate"), 0.0
    points = [(x / 10, 3 * x / 10) for x in range(11)]
    for epoch in range(int(os.environ["EPOCHS"])):
        slope -= rate * sum(2 * x * (slope * x - y) for x, y in points) / len(points)
        if epoch % 50 == 0:
            pipes.log.info(f"epoch {epoch}: slope {slope:.3f}")
    print("trained with", os.environ.get("SLURM_CPUS_PER_TASK", "?"), "CPUs")
    pipes.report_asset_materialization(metadata={"slope": round(slope, 6), "python": sys.prefix})
