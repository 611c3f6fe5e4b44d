"""How a payload is started on the site: launchers make typed plans, the runner there carries them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import dagster as dg
from pydantic import Field

from dagster_slurmbus.values import wrong
from slurmbus_protocol.messages import CommandPlan

_BASH: tuple[str, ...] = ("bash", "-euo", "pipefail")


class ComputeLauncher(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic over what a resource turns into
    """Base of all launchers. A launcher of your own is one class with one method."""

    preamble: str = Field(
        default="", description="Lines that bash runs before the payload, under set -euo pipefail: module load …"
    )

    def plan(self, payload: str, args: Sequence[str] = ()) -> CommandPlan:
        """Say how the runner shall start a payload.

        Args:
            payload: the payload's path, relative to the job's working directory.
            args: what the payload gets as arguments.
        """
        raise NotImplementedError(f"{type(self).__name__} has no plan()")


class BashLauncher(ComputeLauncher):
    """Starts ``.py`` payloads with the site's ``python3``, ``.sh`` payloads with bash under ``set -euo pipefail``."""

    python: str = Field(default="python3", description="The site's Python: a name on PATH there, or a path there.")

    def plan(self, payload: str, args: Sequence[str] = ()) -> CommandPlan:
        """Choose the program by the payload's suffix; ``dagster.Failure`` when it is neither .py nor .sh."""
        suffix = PurePosixPath(payload).suffix
        program = {".py": (self.python,), ".sh": _BASH, ".bash": _BASH}.get(suffix)
        if program is None:
            raise wrong(
                f"payload_path: BashLauncher starts .py and .sh files, and {payload!r} is neither; rename it, "
                "use another launcher, or run a command of your own with PipesSlurmClient"
            )
        return CommandPlan(argv=(*program, payload, *args), preamble=self.preamble)
