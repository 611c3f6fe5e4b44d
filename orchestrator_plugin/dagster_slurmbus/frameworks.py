"""Which launcher starts a framework that is only named."""

from __future__ import annotations

from difflib import get_close_matches

from dagster_slurmbus.launchers import (
    BashLauncher,
    ComputeLauncher,
    MpiLauncher,
    RayLauncher,
    SparkLauncher,
    TorchrunLauncher,
)
from dagster_slurmbus.values import wrong

FRAMEWORKS: dict[str, type[ComputeLauncher]] = {
    "bash": BashLauncher,
    "python": BashLauncher,
    "ray": RayLauncher,
    "mpi": MpiLauncher,
    "torchrun": TorchrunLauncher,
    "spark": SparkLauncher,
}
"""By the name that stands in ``resource_requirements``; a launcher of your own may be added."""


def launcher_for(framework: str | None) -> ComputeLauncher | None:
    """Give the launcher of a framework with its defaults, or None when none is named."""
    if framework is None:
        return None
    launcher = FRAMEWORKS.get(framework.lower())
    if launcher is None:
        close = get_close_matches(framework.lower(), FRAMEWORKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(FRAMEWORKS))}"
        raise wrong(f"resource_requirements: there is no launcher for the framework {framework!r}: {hint}")
    return launcher()
