"""Predicts tomorrow's maximum temperature by gradient descent, and draws how well that went."""

import json
import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
from dagster_pipes import open_dagster_pipes

mpl.use("Agg")
import matplotlib.pyplot as plt

EPOCHS = 400


def main() -> None:
    with open_dagster_pipes() as pipes:
        print(f"GPUs of this job: {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}", flush=True)
        data = np.genfromtxt("features.csv", delimiter=",", skip_header=1, usecols=range(1, 9))
        inputs, target = data[:, :-1], data[:, -1]
        train = len(data) * 3 // 4
        mean, spread = inputs[:train].mean(axis=0), inputs[:train].std(axis=0)
        scaled = np.c_[(inputs - mean) / spread, np.ones(len(inputs))]
        weights = np.zeros(scaled.shape[1])
        for epoch in range(1, EPOCHS + 1):
            error = scaled[:train] @ weights - target[:train]
            weights -= 0.1 * scaled[:train].T @ error / train
            if epoch % 100 == 0:
                print(f"epoch {epoch}: mean error {np.abs(error).mean():.2f} °C", flush=True)
        predicted = scaled[train:] @ weights
        mean_error = float(np.abs(predicted - target[train:]).mean())
        naive_error = float(np.abs(inputs[train:, 0] - target[train:]).mean())

        figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
        axes.plot(target[train:], color="0.6", linewidth=1, label="measured")
        axes.plot(predicted, color="tab:blue", linewidth=1, label=f"predicted a day ahead (±{mean_error:.1f} °C)")
        axes.set(title="Maximum temperature in Seattle", xlabel="days of the test set", ylabel="°C")
        axes.legend(frameon=False)
        figure.savefig("plot.png", dpi=110)
        Path("model.json").write_text(json.dumps({"weights": weights.tolist(), "mean_error": mean_error}))
        pipes.report_asset_materialization(
            metadata={"mean_error": mean_error, "error_of_yesterdays_value": naive_error}
        )


if __name__ == "__main__":
    main()
