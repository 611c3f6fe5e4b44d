"""Turns daily weather into features, as two Slurm tasks that each take half of the days.

The batch job runs this once; it starts itself again as one process a task, with srun where there is one.
"""

import csv
import math
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from dagster_pipes import open_dagster_pipes

COLUMNS = ["date", "temp_max", "yesterday", "day_before", "season_sin", "season_cos", "wind", "rain_yesterday", "next"]


def make_features(rank: int, tasks: int) -> None:
    """Write the features of one task's days: what is known on a day, and the maximum of the next one."""
    with Path("weather.csv").open() as file:
        days = list(csv.DictReader(file))
    with Path(f"features-{rank}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for index in range(2 + rank, len(days) - 1, tasks):
            day, before, earlier = days[index], days[index - 1], days[index - 2]
            angle = 2 * math.pi * date.fromisoformat(day["date"]).timetuple().tm_yday / 365.25
            writer.writerow(
                [
                    day["date"],
                    day["temp_max"],
                    before["temp_max"],
                    earlier["temp_max"],
                    f"{math.sin(angle):.5f}",
                    f"{math.cos(angle):.5f}",
                    day["wind"],
                    before["precipitation"],
                    days[index + 1]["temp_max"],
                ]
            )
    print(f"task {rank} of {tasks} on {os.uname().nodename} is done", flush=True)


def run_tasks(tasks: int) -> None:
    """Run one process a task: as a job step, or as plain processes where there is no Slurm."""
    command = [sys.executable, __file__, "--task"]
    if shutil.which("srun") and "SLURM_JOB_ID" in os.environ:
        subprocess.run(["srun", f"--ntasks={tasks}", *command], check=True)
        return
    processes = [
        subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(tasks)})
        for rank in range(tasks)
    ]
    if any(process.wait() for process in processes):
        sys.exit("a task failed")


def main() -> None:
    if "--task" in sys.argv:
        make_features(int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]))
        return
    with open_dagster_pipes() as pipes:
        tasks = int(pipes.get_extra("tasks"))
        pipes.log.info(f"making features with {tasks} tasks")
        run_tasks(tasks)
        rows = sorted(line for rank in range(tasks) for line in Path(f"features-{rank}.csv").read_text().splitlines())
        Path("features.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
        print(f"features.csv has {len(rows)} days", flush=True)
        pipes.report_asset_materialization(metadata={"days": len(rows), "tasks": tasks})


if __name__ == "__main__":
    main()
