"""Writes its measurements where the site keeps the data."""

import os
import sys
from pathlib import Path

from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    folder = Path(os.environ["DATA_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    values = [n * n for n in range(int(sys.argv[1]))]
    (folder / "values.txt").write_text("\n".join(map(str, values)))
    pipes.report_asset_materialization(metadata={"values": len(values), "file": str(folder / "values.txt")})
