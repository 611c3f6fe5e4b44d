"""Writes how long the sun can shine on one day at 48° north; the day is the partition's."""

import datetime as dt
import math
import os
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    day = dt.date.fromisoformat(pipes.partition_key)
    declination = math.radians(-23.44 * math.cos(math.tau * (day.timetuple().tm_yday + 10) / 365))
    hours = 24 / math.pi * math.acos(-math.tan(math.radians(48)) * math.tan(declination))
    folder = Path(os.environ["DATA_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{day}.txt"
    file.write_text(f"{hours:.3f}\n")
    pipes.report_asset_materialization(metadata={"hours": hours, "file": str(file), "host": os.uname().nodename})
