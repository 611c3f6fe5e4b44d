"""Says where it runs, and leaves a plot."""

import os
import sys
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    print("in the year", os.environ["YEAR"])
    sys.stdout.buffer.write(b"caf\xe9\n")
    print("to stderr", file=sys.stderr)
    pipes.log.info("extras %s", pipes.extras)
    Path("plot.png").write_bytes(bytes(range(256)) * 4096)
    pipes.report_asset_materialization(metadata={"rows": 10, "user": os.environ["USER"]})
