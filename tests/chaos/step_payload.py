"""The payload of the Dagster steps: the same notes and bytes as `payload.py`, and messages through Dagster Pipes."""

import json
import sys
import time

import dagster_pipes
from payload import TICK, Notes, pattern  # type: ignore[import-not-found]  # it lies beside this file on the node

plan = json.loads(sys.argv[1])
notes = Notes(plan["folder"], plan["id"])
notes.write("begin")
with dagster_pipes.open_dagster_pipes() as pipes:
    for piece in range(plan["pieces"]):
        count = plan["stdout"]
        sys.stdout.write(
            pattern(
                plan["id"], "stdout", count * piece // plan["pieces"], count * (piece + 1) // plan["pieces"]
            ).decode()
        )
        sys.stdout.flush()
        pipes.log.info("%s says %d", plan["id"], piece)
        until = time.monotonic() + plan["seconds"] / plan["pieces"]
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(TICK, left))
            notes.write("tick")
    pipes.report_asset_materialization(metadata={"pieces": plan["pieces"], "said_by": plan["id"]})
notes.write("end", "0")
