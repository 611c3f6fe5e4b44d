"""A job's secret variables: the agent puts them into a file for one start, which is emptied when the payload runs.

The empty file stays: it says that they were taken, so the agent doesn't put them there again.
"""

from __future__ import annotations

import json
import os
import time

from slurmbus_agent.runner.payload import NotStarted
from slurmbus_agent.runner.protocol import EXIT_SETUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slurmbus_agent.runner.signals import Signals

PATIENCE = 900.0
"""Seconds: a start that follows a requeue has to wait until an agent has noticed it, and that may be away itself."""
LOOK_EVERY = 0.5


def path(folder: str, start: int) -> str:
    """Give the file with the secret variables of a start."""
    return f"{folder}/{start}.secrets"


def read(folder: str, start: int, signals: Signals) -> dict[str, str]:
    """Wait for the secret variables of a start, and give them.

    Raises:
        NotStarted: they didn't come, or can't be had.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            with open(os.open(path(folder, start), os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                content = file.read()
            break
        except FileNotFoundError:
            if signals.pending:
                raise NotStarted("it was told to end while it waited for its secret values", EXIT_SETUP) from None
            if time.monotonic() > give_up:
                words = f"its secret values didn't come within {PATIENCE:.0f} s: does the site's agent run?"
                raise NotStarted(words, EXIT_SETUP) from None
            time.sleep(LOOK_EVERY)
    try:
        found = json.loads(content)
        error, env = found.get("error"), found.get("env")
    except (ValueError, AttributeError):
        raise NotStarted("its secret values have been taken already", EXIT_SETUP) from None
    if error or not isinstance(env, dict):
        raise NotStarted(f"its secret values can't be had: {error}", EXIT_SETUP)
    return {str(name): str(value) for name, value in env.items()}


def burn(folder: str, start: int) -> None:
    """Empty the file: the payload has what stood there, or never will."""
    with open(os.open(path(folder, start), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.truncate(0)
        os.fsync(file.fileno())
