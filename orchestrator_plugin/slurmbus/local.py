"""The local helper: a bus and an agent on this machine, for laptops, tests and CI."""

from __future__ import annotations

from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings

LOCAL_SITE = "local"


def ensure_local(home: Home | None = None) -> tuple[ConnectionSettings, str]:
    """Give the connection and the site's name of this user's local helper, starting it when it doesn't run.

    The helper (``python -m slurmbus.helper``) is one process per user and home, found by a lock. It ends by itself when
    no process that called this lives any more and no job is unfinished; jobs outlive the steps that started them.

    Args:
        home: None is the user's own.

    Raises:
        LocalNotStarted: it didn't come up; its log stands in the message.
    """
    raise NotImplementedError


def stop_local(home: Home | None = None, *, timeout: float = 15.0) -> bool:
    """Stop the helper and wait until it is gone; jobs go on. False when none was running."""
    raise NotImplementedError
