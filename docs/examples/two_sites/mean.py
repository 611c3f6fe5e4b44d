"""Reads what the asset before it left there."""

import os
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    values = [int(line) for line in (Path(os.environ["DATA_DIR"]) / "values.txt").read_text().split()]
    pipes.report_asset_materialization(metadata={"mean": sum(values) / len(values), "host": os.uname().nodename})
