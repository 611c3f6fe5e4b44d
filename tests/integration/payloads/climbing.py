"""A step whose job runs out of memory first, and whose second job waits for a file; a step may be killed meanwhile."""

import os
from pathlib import Path

import dagster as dg

from dagster_slurmbus import MoreMemory, PipesSlurmClient

PAYLOAD = """
import os, sys, time
from pathlib import Path

held = b"x" * (300 * 1024**2)
desk = Path(os.environ["DESK"])
with (desk / "count").open("a") as count:
    count.write("ran\\n")
while not (desk / "go").exists():
    time.sleep(0.01)
"""


@dg.asset
def one(context: dg.AssetExecutionContext):
    slurm = PipesSlurmClient(site=os.environ["SITE"], env={"DESK": os.environ["THERE"]})
    path = Path(os.environ["DESK"]) / "hungry.py"
    path.write_text(PAYLOAD)
    return slurm.run(
        context=context,
        command="python3 hungry.py",
        files=[path],
        options={"mem": "150M"},
        on_out_of_memory=MoreMemory(factor=4, limit="2G"),
    ).get_materialize_result()


one = dg.Definitions(assets=[one], jobs=[dg.define_asset_job("one_job", [one])]).resolve_job_def("one_job")
