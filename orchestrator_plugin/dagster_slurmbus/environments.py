"""Environments in Dagster's words: as configuration, and with their progress in the event log."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import dagster as dg
from pydantic import Field

from dagster_slurmbus._compat import is_env_var
from dagster_slurmbus.values import class_named, wrong
from slurmbus.environments import (
    AnyEnvironment,
    ApptainerImage,
    CondaPack,
    InstalledEnvironment,
    Modules,
    PackedEnvironment,
    PixiPack,
    Requirements,
    SiteFolder,
    UvLock,
    as_environment,
)
from slurmbus_protocol.errors import SlurmbusError

KINDS: dict[str, type[Any]] = {
    "installed": InstalledEnvironment,
    "uv-lock": UvLock,
    "requirements": Requirements,
    "conda-pack": CondaPack,
    "pixi-pack": PixiPack,
    "folder": SiteFolder,
    "modules": Modules,
    "apptainer": ApptainerImage,
}
SAY_EVERY = 10.0
"""Seconds between two lines about the same thing in the event log."""


class EnvironmentConfig(dg.Config):
    """An environment as configuration; in code give the environment itself, or its name."""

    kind: str = Field(description=f"{', '.join(KINDS)}; or a class of your own: package.module:Class.")
    settings: dict[str, Any] = Field(default_factory=dict, description="What the environment is made with.")

    def environment(self) -> AnyEnvironment:
        """Make the environment; ``dagster.Failure`` when the settings don't fit."""
        kind = KINDS.get(self.kind) or class_named(self.kind, "environment", KINDS)
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()}
        try:
            made = kind(*settings.pop("load", ()), **settings) if kind is Modules else kind(**settings)
        except TypeError as error:
            raise wrong(f"environment: {self.kind} can't be made of {self.settings}: {error}") from error
        if not isinstance(made, PackedEnvironment | InstalledEnvironment | SiteFolder | Modules | ApptainerImage):
            raise wrong(f"environment: {self.kind} is no environment")
        return made


def as_config(value: Any) -> Any:
    """Turn an environment, or its name, into configuration; ValueError when it can't be one."""
    if value is None or is_env_var(value) or isinstance(value, dict | EnvironmentConfig):
        return value
    try:
        made = as_environment(value)
    except SlurmbusError as error:
        raise ValueError(str(error)) from error
    if not dataclasses.is_dataclass(made):
        raise ValueError(f"{type(made).__name__} has to be a dataclass; or give it to run(environment=…)")
    names = {kind: name for name, kind in KINDS.items()}
    kind = names.get(type(made), f"{type(made).__module__}:{type(made).__qualname__}")
    settings = {
        name: list(setting) if isinstance(setting, tuple) else setting
        for name, setting in dataclasses.asdict(made).items()
    }
    return EnvironmentConfig(kind=kind, settings=settings)


class Telling:
    """Says in the event log how far an environment is: each thing once it begins, then now and then.

    Args:
        say: writes a line.
        clock: gives seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._doing = ""
        self._said_at = 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Take the progress of something."""
        now = self._clock()
        is_news = doing != self._doing
        if not is_news and now - self._said_at < SAY_EVERY and done != total:
            return
        if not is_news and total == 0:
            return
        self._doing, self._said_at = doing, now
        part = f", {done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if total else ""
        self._say(f"environment: {doing}{part}")
