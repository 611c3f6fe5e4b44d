"""What all launchers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from pydantic import Field

from slurmbus_protocol.plans import AnyPlan


class ComputeLauncher(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic over what a resource turns into
    """Base of all launchers. A launcher of your own is one class with one method."""

    preamble: str = Field(
        default="", description="Lines that bash runs before the payload, under set -euo pipefail: module load …"
    )

    def plan(self, payload: str, args: Sequence[str] = ()) -> AnyPlan:
        """Say how the runner shall start a payload.

        Args:
            payload: the payload's path, relative to the job's working directory, or absolute on the site.
            args: what the payload gets as arguments.
        """
        raise NotImplementedError(f"{type(self).__name__} has no plan()")

    def check(self, path: Path) -> None:
        """Look at the payload's file before anything is submitted; ``dagster.Failure`` when it can't be started."""
