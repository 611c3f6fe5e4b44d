"""Throws darts at a square on all CPUs of the job, and counts those within the circle."""

import csv
import math
import os
import random
from concurrent.futures import ProcessPoolExecutor

from dagster_pipes import open_dagster_pipes

ROUNDS = 8
DARTS = 250_000
"""In each round and process."""


def throw(seed: int) -> int:
    """Give how many darts of one batch fell within the circle."""
    dart = random.Random(seed)
    return sum(math.hypot(dart.random(), dart.random()) <= 1 for _ in range(DARTS))


def main() -> None:
    """Write ``hits.csv``: the darts thrown and those within, after each round."""
    workers = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    with (
        open_dagster_pipes() as pipes,
        ProcessPoolExecutor(workers) as pool,
        open("hits.csv", "w", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["darts", "hits"])
        darts = hits = 0
        for number in range(ROUNDS):
            hits += sum(pool.map(throw, range(number * workers, (number + 1) * workers)))
            darts += DARTS * workers
            rows.writerow([darts, hits])
            print(f"round {number + 1} of {ROUNDS}: {darts:,} darts, π ≈ {4 * hits / darts:.5f}", flush=True)
        pipes.report_asset_materialization(metadata={"darts": darts, "processes": workers})


if __name__ == "__main__":
    main()
