"""Says half of what it has to say, waits for a file, and says the rest."""

import os
import sys
import time
from pathlib import Path

from dagster_pipes import open_dagster_pipes

desk = Path(os.environ["DESK"])
name = os.environ.get("NAME")
with open_dagster_pipes() as pipes:
    with (desk / "count").open("a") as count:
        count.write(f"ran {name}\n" if name else "ran\n")
    print("a warning", file=sys.stderr, flush=True)
    pipes.log.info("said early")
    sys.stdout.write("".join(f"line {number}\n" for number in range(1000)))
    sys.stdout.flush()
    if os.environ.get("FAIL") == "once" and not (desk / "failed").exists():
        (desk / "failed").touch()
        sys.exit(3)
    while not (desk / "go").exists():
        time.sleep(0.01)
    sys.stdout.write("".join(f"line {number}\n" for number in range(1000, 2000)))
    sys.stdout.flush()
    pipes.log.info("said late")
    if pipes.is_asset_step:
        pipes.report_asset_materialization(metadata={"rows": 10, "payload_partition": name or ""})
