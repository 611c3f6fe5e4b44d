"""A launcher of one's own: the payload runs under a tool that measures, pins or wraps it."""

from collections.abc import Sequence

from dagster_slurmbus import BashLauncher
from slurmbus_protocol.plans import AnyPlan, CommandPlan


class ToolLauncher(BashLauncher):
    """Puts a tool's words before those of the payload."""

    tool: list[str]

    def plan(self, payload: str, args: Sequence[str] = ()) -> AnyPlan:
        return CommandPlan(argv=(*self.tool, *self.words(payload, args)), preamble=self.preamble)
