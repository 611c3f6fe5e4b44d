"""What commands that show the live picture share."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import click

from slurmbus.board import Board
from slurmbus.home import Home
from slurmbus.local import LocalFolder
from slurmbus.settings import ConnectionSettings

SETTLED = 0.5
"""Seconds without news after which a picture is taken for complete."""
PATIENCE = 10.0
"""Seconds after which it is shown as it is."""


def further_buses() -> tuple[ConnectionSettings, ...]:
    """Give the bus that the environment names, besides those of the home."""
    return (ConnectionSettings.from_env(),) if os.environ.get("SLURMBUS_URL") else ()


def open_board() -> Board:
    """Give a board of the user's home, not begun yet; UsageError when there is nothing to show."""
    home, further = Home.default(), further_buses()
    if not further and not home.sites() and not LocalFolder.of(home).home.sites():
        raise click.UsageError("there is no site yet: make one with 'slurmbus sites add NAME'")
    return Board(home, further)


async def filled(board: Board) -> None:
    """Wait until a board knows what there is: every bus was heard of, and then nothing new came for a moment."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE), board.subscribe() as news:
            while True:
                quiet = False
                try:
                    async with asyncio.timeout(SETTLED):
                        await news.changed()
                except TimeoutError:
                    quiet = True
                buses = board.picture.buses.values()
                if quiet and buses and all(bus.reachable or bus.problem for bus in buses):
                    return
