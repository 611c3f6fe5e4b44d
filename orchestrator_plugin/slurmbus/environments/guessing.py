"""Which kind of environment a path means, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slurmbus.environments.conda import CondaPack, PixiPack
from slurmbus.environments.packing import PackedEnvironment
from slurmbus.environments.requirements import Requirements, UvLock
from slurmbus_protocol.errors import InvalidSetting

KINDS = ("uv", "requirements", "conda", "pixi")
_HINT = (
    "a folder with uv.lock or pixi.lock, a requirements.txt, a pylock.toml, a conda environment's folder, or an "
    "archive of conda-pack (.tar.gz) or pixi-pack (.tar, .sh); or say which it is with --kind"
)


def guess(source: str) -> str:
    """Give the kind of what is at a path; InvalidSetting when it could be anything."""
    path = Path(source)
    name = path.name
    if path.is_dir():
        for file, kind in (("conda-meta", "conda"), ("uv.lock", "uv"), ("pixi.lock", "pixi"), ("pixi.toml", "pixi")):
            if (path / file).exists():
                return kind
    elif name in {"uv.lock", "pyproject.toml"}:
        return "uv"
    elif name in {"pixi.toml", "pixi.lock"} or path.suffix in {".tar", ".sh"}:
        return "pixi"
    elif path.suffix in {".txt", ".in"} or (name.startswith("pylock") and path.suffix == ".toml"):
        return "requirements"
    elif name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return "conda"
    raise InvalidSetting(f"{source!r} isn't known as any kind of environment", hint=f"name {_HINT}")


def make(
    source: str,
    kind: str | None,
    *,
    python: str = "",
    groups: Sequence[str] = (),
    extras: Sequence[str] = (),
    project: bool = False,
    resolve: str = "here",
    environment: str = "default",
    self_extracting: bool = False,
) -> PackedEnvironment:
    """Make an environment of what a person wrote on the command line."""
    match kind or guess(source):
        case "uv":
            return UvLock(
                source, groups=tuple(groups), extras=tuple(extras), project=project, python=python, resolve=resolve
            )
        case "requirements":
            return Requirements(source, python=python, resolve=resolve)
        case "conda":
            return CondaPack(source)
        case "pixi":
            return PixiPack(source, environment=environment, self_extracting=self_extracting)
        case other:
            raise InvalidSetting(f"--kind={other}: it is one of {', '.join(KINDS)}")
