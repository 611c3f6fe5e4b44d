"""The few calls of the C library that Python doesn't offer. All of this is Linux's."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_ONESHOT = 0x80000000


def load() -> Any:
    """Give the C library, or None where this Python was built without ctypes."""
    try:
        import ctypes  # noqa: PLC0415 - may be missing
    except ImportError:
        return None
    return ctypes.CDLL(None, use_errno=True)


LIBC = load()


def prctl(option: int, value: int) -> None:
    """Set a property of this process; without ctypes it stays unset."""
    if LIBC is not None:
        LIBC.prctl(option, value, 0, 0, 0)


def inotify() -> int | None:
    """Give a new inotify descriptor, or None when there are none or none are left."""
    if LIBC is None:
        return None
    descriptor: int = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    return descriptor if descriptor >= 0 else None


def forget(descriptor: int, number: int) -> None:
    """Stop waiting for a change."""
    LIBC.inotify_rm_watch(descriptor, number)


def watch_once(descriptor: int, path: str, what: int = IN_MODIFY) -> int | None:
    """Wait for one change of a file's content, and give the number that it will come under, or None."""
    number: int = LIBC.inotify_add_watch(descriptor, os.fsencode(path), what | IN_ONESHOT)
    return number if number >= 0 else None
