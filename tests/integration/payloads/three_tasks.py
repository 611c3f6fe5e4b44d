"""Tasks of an array: one uses CPU time, one needs 300 MiB of memory, and one fails the first time."""

import os
import sys
import time
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    what = sys.argv[1]
    held = b"x" * (300 * 1024**2 if what == "hungry" else 1)
    while what == "busy" and time.process_time() < 2:
        pass
    if what == "weak":
        mark = Path(os.environ["MARK"])
        fails = not mark.exists()
        mark.touch()
        if fails:
            sys.exit(3)
    pipes.report_asset_materialization(metadata={"held": len(held)})
