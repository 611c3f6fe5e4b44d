"""Finds the lattice constant of an fcc crystal of Lennard-Jones atoms: one energy per function call."""

import os

import numpy as np
from dagster_pipes import open_dagster_pipes
from executorlib import SlurmJobExecutor

WORKERS = int(os.environ["SLURM_NTASKS"])
LOWEST, HIGHEST = 1.50, 1.60


def energy(constant: float):
    """Give an atom's energy, and where it was computed; units of the potential."""
    import os

    import numpy as np

    steps = np.arange(-20, 21)
    sites = np.array(np.meshgrid(steps, steps, steps)).reshape(3, -1).T
    sites = sites[(sites.sum(axis=1) % 2 == 0) & sites.any(axis=1)] * constant / 2  # fcc, without the atom itself
    squared = (sites**2).sum(axis=1)
    return 2 * float((squared**-6 - squared**-3).sum()), os.uname().nodename


def main():
    with (
        open_dagster_pipes() as pipes,
        # Workers that stay (block_allocation), each an srun step on CPUs of its own (exclusive: srun --exact).
        SlurmJobExecutor(
            max_workers=WORKERS, block_allocation=True, resource_dict={"cores": 1, "exclusive": True}
        ) as executor,
    ):
        constants = np.linspace(LOWEST, HIGHEST, 11)
        computed = list(executor.map(energy, constants))
        energies = [value for value, _ in computed]
        curve = np.polynomial.Polynomial.fit(constants, energies, 3)
        (constant,) = [root for root in curve.deriv().roots() if LOWEST < root < HIGHEST]
        pipes.report_asset_materialization(
            metadata={
                "lattice_constant": float(constant),
                "energy": float(curve(constant)),
                "hosts": sorted({host for _, host in computed}),
            }
        )


if __name__ == "__main__":
    main()
