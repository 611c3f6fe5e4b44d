"""Values that users give, checked with errors that name the field."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import dagster as dg

from dagster_slurmbus._compat import is_env_var
from slurmbus.secret_env import SecretEnv, secret_values
from slurmbus_protocol.errors import InvalidSetting

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def wrong(message: str) -> dg.Failure:
    """Give the failure for something that the user's code or settings must change; running it again won't help."""
    return dg.Failure(message, allow_retries=False)


def known_now(value: Any) -> Any:
    """Refuse a ``dg.EnvVar`` where Dagster resolves none and would take the variable's name for its value."""
    for one in value.values() if isinstance(value, Mapping) else (value,):
        if is_env_var(one):
            raise ValueError(f"dg.EnvVar can't stand here: write os.environ[{one.env_var_name!r}]")
    return value


def class_named(kind: str, field: str, known: Iterable[str]) -> type[Any]:
    """Give a class of the user's own, named ``package.module:Class`` in configuration."""
    module, _, name = kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise wrong(f"{field}: kind {kind!r} is none of {', '.join(known)}, nor a class that is here") from error


def resolved(value: Any, field: str) -> Any:
    """Give the value behind a ``dg.EnvVar`` of a plain object (Dagster resolves those of its own resources)."""
    if not is_env_var(value):
        return value
    found = value.get_value()
    if found is None:
        raise wrong(f"{field}: the environment variable {value.env_var_name} isn't set")
    return found


def environment(values: Mapping[str, Any] | None, field: str) -> dict[str, str]:
    """Check names and values of environment variables."""
    checked: dict[str, str] = {}
    for name, given in (values or {}).items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise wrong(f"{field}: {name!r} is no name of an environment variable (letters, digits and '_' only)")
        value = resolved(given, f"{field}[{name!r}]")
        if not isinstance(value, str):
            raise wrong(
                f"{field}[{name!r}] is {type(value).__name__} {value!r}, but environment variables are text: "
                f"write str({value!r})"
            )
        if "\0" in value:
            raise wrong(f"{field}[{name!r}] has a NUL character, which no environment variable can hold")
        checked[name] = value
    return checked


def secrets(given: SecretEnv | None) -> dict[str, str]:
    """Give the values of secret variables; what is wrong is told without them."""
    if isinstance(given, Mapping):
        given = {name: resolved(value, f"secret_env[{name!r}]") for name, value in given.items()}
    try:
        return secret_values(given, "secret_env")
    except InvalidSetting as error:
        raise wrong(str(error)) from error


def inside(path: str, field: str) -> str:
    """Check a path relative to the job's working directory; it must stay in there."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path or str(pure) == ".":
        raise wrong(f"{field}: {path!r} isn't a path inside the job's working directory")
    return str(pure)


def absolute(path: str | None, field: str) -> str | None:
    """Check a folder on the site."""
    if path is not None and not (isinstance(path, str) and PurePosixPath(path).is_absolute()):
        raise wrong(f"{field}={path!r} isn't absolute: name a folder on the site, e.g. /home/alice/work")
    return path
