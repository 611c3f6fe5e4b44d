"""The partitions of sites, asked for rarely however many pages look."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

import msgspec

from slurmbus.board import Board
from slurmbus_protocol.messages import AskPartitions, Partitions

FRESH = 60.0
"""Seconds for which an answer is given again: each question is a call of the site's controller."""


class PartitionsOf:
    """Asks the sites' agents."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._found: dict[str, tuple[float, list[dict[str, Any]]]] = {}
        self._asking: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, site: str) -> list[dict[str, Any]]:
        """Give a site's partitions; SlurmbusError when its agent doesn't say."""
        client = self._board.site(site)
        async with self._asking[site]:
            at, found = self._found.get(site, (0.0, []))
            if not at or time.monotonic() - at > FRESH:
                answer = await client.ask("partitions", AskPartitions(), Partitions)
                found = msgspec.to_builtins(answer.partitions)
                self._found[site] = (time.monotonic(), found)
            return found
