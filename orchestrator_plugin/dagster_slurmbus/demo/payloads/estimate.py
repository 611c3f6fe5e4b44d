"""Tells how far π is known after so many darts."""

import csv
import json
import math

from dagster_pipes import open_dagster_pipes


def main() -> None:
    """Read ``hits.csv`` and write ``pi.json``."""
    with open_dagster_pipes() as pipes:
        with open("hits.csv", newline="") as file:
            darts, hits = (int(word) for word in list(csv.reader(file))[-1])
        share = hits / darts
        pi, error = 4 * share, 4 * math.sqrt(share * (1 - share) / darts)
        print(f"π = {pi:.5f} ± {error:.5f}", flush=True)
        with open("pi.json", "w") as file:
            json.dump({"pi": pi, "standard_error": error, "darts": darts}, file)
        pipes.report_asset_materialization(metadata={"pi": pi, "standard_error": error, "off_by": abs(pi - math.pi)})


if __name__ == "__main__":
    main()
