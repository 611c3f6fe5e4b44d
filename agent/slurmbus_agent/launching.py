"""Launch plans as the runner reads them."""

from __future__ import annotations

from typing import Any

import msgspec

from slurmbus_protocol.plans import AnyPlan, CommandPlan, Plan


def launch_fields(plan: AnyPlan) -> dict[str, Any] | None:
    """Give what stands as ``launch`` in the runner's plan: its type and all of its own fields; None for a command.

    Defaults are written out, too: so they are named in one place, the protocol.
    """
    if isinstance(plan, CommandPlan):
        return None
    own = [name for name in plan.__struct_fields__ if name not in Plan.__struct_fields__]
    return {"type": plan.__struct_config__.tag, **{name: msgspec.to_builtins(getattr(plan, name)) for name in own}}
