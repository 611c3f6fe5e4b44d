"""Work that can wait shares the heartbeat's waking up: that costs a sleeping process more than a little work does."""

from __future__ import annotations

import asyncio
import contextlib


class Beats:
    """Tells when there was a heartbeat."""

    def __init__(self) -> None:
        self._beat = asyncio.Event()

    def happened(self) -> None:
        """Let go on who waits for a heartbeat."""
        self._beat.set()
        self._beat.clear()

    async def after(self, least: float, most: float) -> None:
        """Come back with the first heartbeat after ``least`` seconds, and after ``most`` seconds in any case."""
        loop = asyncio.get_running_loop()
        earliest = loop.time() + least
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most):
                while True:
                    await self._beat.wait()
                    if loop.time() >= earliest:
                        return
