"""Files by which a launch tells the runner and the agent something: JSON objects of text, replaced at once."""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def facts(folder: str, start: int, values: Mapping[str, str]) -> None:
    """Write what people want to know of a start, e.g. the address of a page to look at (file ``<start>.facts``)."""
    _write(f"{folder}/{start}.facts", values)


def trouble(folder: str, start: int, error: str) -> None:
    """Write why a launch failed (file ``<start>.trouble``), for the runner's report."""
    _write(f"{folder}/{start}.trouble", {"error": error})


def read_trouble(folder: str, start: int) -> str | None:
    """Give why a launch failed, None when it didn't say."""
    try:
        with open(f"{folder}/{start}.trouble", "rb") as file:
            return str(json.loads(file.read())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def secret(path: str, text: str) -> None:
    """Write a file that only its owner may read."""
    with open(path, "w", encoding="utf-8", opener=_private) as file:
        file.write(text + "\n")


def _write(path: str, values: Mapping[str, str]) -> None:
    new = f"{path}.{os.getpid()}"
    with open(new, "w", encoding="utf-8", opener=_private) as file:
        json.dump({str(name): str(value) for name, value in values.items()}, file)
    os.replace(new, path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
