"""The host's time of day that doesn't jump."""

from __future__ import annotations

import time


class SteadyClock:
    """The time of day as it was when this was made, carried on by a clock that nobody sets (CLOCK_BOOTTIME).

    A host's clock that is put forward by days, and back again, must not make requests or authority expire.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def __call__(self) -> float:
        """Give the time in seconds since 1970."""
        return self._offset + time.clock_gettime(time.CLOCK_BOOTTIME)
