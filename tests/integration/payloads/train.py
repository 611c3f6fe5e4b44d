"""Uses one of its two CPUs, and an amount of memory that can be recognised."""

import os
import time
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    print("experiment", os.environ["EXPERIMENT"])
    memory = bytearray(os.urandom(1024)) * (150 * 1024)
    while time.process_time() < 2:
        pass
    pipes.report_asset_materialization(metadata={"folder": str(Path.cwd()), "bytes": len(memory)})
