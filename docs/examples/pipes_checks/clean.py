"""Keeps the readings that can be true, and says what it dropped."""

import csv
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    lowest, highest = pipes.get_extra("lowest"), pipes.get_extra("highest")
    with Path("readings.csv").open() as file:
        readings = list(csv.DictReader(file))
    present = [reading for reading in readings if reading["celsius"]]
    kept = [reading for reading in present if lowest <= float(reading["celsius"]) <= highest]
    for reading in present:
        if reading not in kept:
            pipes.log.warning(f"{reading['station']} said {reading['celsius']} °C at {reading['time']}")

    pipes.report_asset_check(
        check_name="nothing_missing",
        passed=len(present) == len(readings),
        severity="WARN",
        metadata={"missing": len(readings) - len(present)},
    )
    pipes.report_asset_check(
        check_name="enough_left", passed=len(kept) >= pipes.get_extra("at_least"), metadata={"left": len(kept)}
    )
    pipes.report_asset_materialization(
        metadata={
            "rows": len(kept),
            "mean": sum(float(reading["celsius"]) for reading in kept) / len(kept),
            "columns": {"type": "md", "raw_value": "`time`, `station`, `celsius`"},
        }
    )
