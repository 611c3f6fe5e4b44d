"""The table ``[environments]`` of the agent's settings."""

from __future__ import annotations

from typing import Annotated

import msgspec


class EnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where environments are installed, and what they may take up."""

    folder: str | None = None
    """On a file system that login and compute nodes share; ``environments`` in the spool when it isn't set."""
    pythons: tuple[str, ...] = ()
    """Further interpreters on which environments can be built, names or paths; they must be there on compute nodes."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 * 1024**3
    """Of one environment, unpacked."""
    max_files: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    at_once: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Environments that are installed at the same time: one unpacks as fast as most file systems take it."""
    pixi_unpack: str = "pixi-unpack"
    """The program that unpacks what pixi-pack packed, a name or a path."""
    uv: str = "uv"
    """The program that installs requirements which the site resolves itself; pip where it isn't there."""
