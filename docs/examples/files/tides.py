"""Draws the tides of all harbours that came along, and sums them up."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    summary = ["harbour,highest,lowest"]
    for path in sorted(Path("harbours").glob("*.csv")):
        hours, metres = np.loadtxt(path, delimiter=",", skiprows=1, unpack=True)
        axes.plot(hours, metres, label=path.stem)
        summary.append(f"{path.stem},{metres.max()},{metres.min()}")
        pipes.log.info(f"{path.stem}: {len(metres)} readings")
    axes.set(xlabel="hours", ylabel="m")
    axes.legend(frameon=False)
    figure.savefig("plot.png", dpi=80)
    Path("summary.csv").write_text("\n".join(summary) + "\n")
    pipes.report_asset_materialization(metadata={"harbours": len(summary) - 1})
