"""Launchers as configuration, where Dagster has no place for a resource within another one: in a list of sites."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import Field, ValidationError

from dagster_slurmbus._compat import is_env_var
from dagster_slurmbus.frameworks import FRAMEWORKS
from dagster_slurmbus.launchers import ComputeLauncher
from dagster_slurmbus.values import class_named, known_now, wrong


class LauncherConfig(dg.Config):
    """A launcher as configuration; in code give the launcher itself."""

    kind: str = Field(description=f"{', '.join(FRAMEWORKS)}; or a class of your own: package.module:Class.")
    settings: dict[str, Any] = Field(default_factory=dict, description="What the launcher is made with.")

    def launcher(self) -> ComputeLauncher:
        """Make the launcher; ``dagster.Failure`` when the settings don't fit."""
        kind = FRAMEWORKS.get(self.kind) or class_named(self.kind, "default_launcher", FRAMEWORKS)
        if not issubclass(kind, ComputeLauncher):
            raise wrong(f"default_launcher: {self.kind} is no launcher")
        try:
            return kind(**self.settings)
        except (TypeError, ValidationError) as error:
            raise wrong(f"default_launcher: {self.kind} can't be made of {self.settings}: {error}") from error


def as_launcher_config(value: Any) -> Any:
    """Turn a launcher into configuration; ValueError when it can't be one."""
    if not isinstance(value, ComputeLauncher):
        if value is None or is_env_var(value) or isinstance(value, dict | LauncherConfig):
            return value
        raise ValueError(f"{value!r} is no launcher: give one, e.g. BashLauncher(python='/opt/envs/x/bin/python')")
    kind = type(value)
    if "<" in kind.__qualname__:
        raise ValueError(f"{kind.__qualname__} has to be a class of a module: other processes make it again")
    names = {known: name for name, known in reversed(FRAMEWORKS.items())}
    settings = {name: getattr(value, name) for name in sorted(value.model_fields_set)}
    return LauncherConfig(kind=names.get(kind, f"{kind.__module__}:{kind.__qualname__}"), settings=known_now(settings))
