"""The exit codes of the command."""

from __future__ import annotations

from slurmbus.errors import LocalNotStarted, LoginFailed, RequeueUnknown, SiteUnfit
from slurmbus_protocol.errors import (
    BusFull,
    BusRefused,
    BusUnreachable,
    NotAllowed,
    NotRequeueable,
    SiteUnreachable,
    SlurmbusError,
)

SUCCESS = 0
JOB_FAILED = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
INTERRUPTED = 130

_UNREACHABLE = (BusUnreachable, SiteUnreachable, LocalNotStarted, LoginFailed, RequeueUnknown)
_REFUSED = (NotAllowed, NotRequeueable, BusFull, BusRefused, SiteUnfit)


def exit_code(error: SlurmbusError) -> int:
    """Give the exit code of an error."""
    if isinstance(error, _REFUSED):
        return REFUSED
    if isinstance(error, _UNREACHABLE):
        return UNREACHABLE
    return USAGE
