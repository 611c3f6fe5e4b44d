"""What an error of the spool's file system means."""

from __future__ import annotations

import errno

from slurmbus_agent.runner.protocol import ERROR_SPOOL, ERROR_SPOOL_FULL

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def spool_trouble(error: OSError) -> tuple[str, str]:
    """Give words and code for a spool that can't be written."""
    if error.errno in _FULL:
        return f"the spool's disk or quota is full: {error.strerror}", ERROR_SPOOL_FULL
    return f"the spool can't be written: {error.strerror}", ERROR_SPOOL
