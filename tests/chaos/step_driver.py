"""Runs the graph once with an own process for each step; a step that dies is run again by its retry policy.

Arguments: the folder of the Dagster instance, and how many steps at the same time.
"""

import sys
from pathlib import Path

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob

if __name__ == "__main__":
    with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
        job = ReconstructableJob.for_file(str(Path(__file__).with_name("step_definitions.py")), "steps")
        config = {"execution": {"config": {"multiprocess": {"max_concurrent": int(sys.argv[2])}}}}
        with dg.execute_job(job, instance=instance, run_config=config) as result:
            sys.exit(0 if result.success else 1)
