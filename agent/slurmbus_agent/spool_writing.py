"""Writing into the spool: atomic, durable, private, and with errors that say what is full.

::

    SpoolError
    ├── SpoolFull          no bytes or no files are left, on the disk or in the quota   (retryable)
    └── SpoolUnusable      the file system doesn't do what it should                    (retryable)
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from slurmbus_protocol.errors import SlurmbusError

FOLDER_MODE = 0o700
FILE_MODE = 0o600


class SpoolError(SlurmbusError):
    """The spool can't be used."""

    code: ClassVar[str] = "spool-error"
    retryable: ClassVar[bool] = True


class SpoolFull(SpoolError):
    """The spool's disk or quota is full."""

    code: ClassVar[str] = "spool-full"
    default_hint: ClassVar[str] = "free space on the cluster, ask for a larger quota, or set another spool folder"


class SpoolUnusable(SpoolError):
    """The spool's file system refuses to work."""

    code: ClassVar[str] = "spool-unusable"
    default_hint: ClassVar[str] = "check that the folder exists, belongs to you and isn't mounted read-only"


_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file grew too large"}


@contextlib.contextmanager
def typed(path: Path) -> Iterator[None]:
    """Turn the OSErrors of a block that works on ``path`` into SpoolErrors."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # no answer of the file system, e.g. a TimeoutError of the block's own
            raise
        if error.errno in _FULL:
            raise SpoolFull(f"{path} can't be written: {_FULL[error.errno]}") from error
        reason = error.strerror or type(error).__name__
        raise SpoolUnusable(f"{path} can't be used: {reason}") from error


def make_folder(path: Path) -> None:
    """Make a private folder, and the missing ones above it; an existing one is fine."""
    with typed(path):
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


def write(path: Path, data: bytes) -> None:
    """Replace a file so that readers see the old or the new content, and the new one survives a crash."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with typed(path):
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
        except OSError:
            with contextlib.suppress(OSError):  # what matters is the first error
                new.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
