"""Secret environment variables as people write them: with their values, or by the names that they have here."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

from slurmbus_protocol.errors import InvalidSetting

SecretEnv = Mapping[str, str] | Collection[str]
"""Values by name, or names of variables of this process."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_secret_names(names: Iterable[str]) -> None:
    """Raise InvalidSetting for a name that can't be a variable."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidSetting(f"the secret {name!r} names no variable", hint="use letters, digits and '_'")


def secret_values(given: SecretEnv | None, where: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the values of secret variables.

    Args:
        given: as it was written.
        where: what an error names.
        environ: where values of bare names come from; this process' variables by default.

    Raises:
        InvalidSetting: a name can't be a variable, or isn't set here. No value is ever shown.
    """
    if given is None:
        return {}
    if isinstance(given, str):
        raise InvalidSetting(f"{where} is a text", hint="write a list of names, or a mapping of names to values")
    check_secret_names(given)
    if isinstance(given, Mapping):
        wrong = [name for name, value in given.items() if not isinstance(value, str)]
        if wrong:
            raise InvalidSetting(f"{where}: the value of {wrong[0]} is no text")
        return dict(given)
    env = os.environ if environ is None else environ
    missing = [name for name in given if name not in env]
    if missing:
        raise InvalidSetting(f"{where}: {missing[0]} isn't set here", hint="set it in this process' environment")
    return {name: env[name] for name in given}
