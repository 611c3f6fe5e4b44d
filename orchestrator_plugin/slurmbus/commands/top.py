"""``slurmbus top``."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from slurmbus.attention import attention
from slurmbus.board import Board, News
from slurmbus.commands.boards import filled, open_board
from slurmbus.commands.console import show_json
from slurmbus.commands.keyboard import keys
from slurmbus.commands.options import json_option
from slurmbus.commands.view import record_json
from slurmbus.errors import UnknownSite
from slurmbus.picture import Picture

if TYPE_CHECKING:
    from rich.live import Live

    from slurmbus.commands.top_frame import Frame

REDRAW = 1.0
"""Seconds after which the frame is drawn again although nothing has come: ages grow."""
STEADY = 0.5
"""Seconds between two frames at least, whatever comes."""
PAGE = 10
SCROLL = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE, "page down": PAGE, " ": PAGE}


@click.command("top")
@click.option("--site", metavar="NAME", help="Only this one. [default: all]")
@click.option("--once", is_flag=True, help="Show one frame and end; so it is in a pipe.")
@json_option
def command(site: str | None, *, once: bool, as_json: bool) -> None:
    """Watch sites, their agents and jobs: what needs attention, on top.

    Keys: q ends it; the arrows and page keys go through the jobs.
    """
    board = open_board()
    if once or as_json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        asyncio.run(_show_once(board, site, as_json=as_json))
    else:
        asyncio.run(_watch(board, site))


async def _show_once(board: Board, site: str | None, *, as_json: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 - takes longer than everything else together

    from slurmbus.commands.top_frame import Frame  # noqa: PLC0415

    async with board:
        await filled(board)
    _check(board.picture, site)
    if as_json:
        show_json(as_values(board.picture, site, time.time()))
    else:
        console = Console()
        console.print(Frame(board.picture, site), soft_wrap=False)


async def _watch(board: Board, site: str | None) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from slurmbus.commands.top_frame import Frame  # noqa: PLC0415

    frame = Frame(board.picture, site, live=True)
    with Live(frame, console=Console(), screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        async with board, board.subscribe() as news:
            await _redraw(frame, live, news)


async def _redraw(frame: Frame, live: Live, news: News) -> None:
    """Draw until a person has seen enough."""
    with keys() as pressed:
        key = asyncio.ensure_future(pressed.get())
        change = asyncio.ensure_future(news.changed())
        try:
            while True:
                live.refresh()
                await asyncio.wait({key, change}, timeout=REDRAW, return_when=asyncio.FIRST_COMPLETED)
                if key.done():
                    if key.result() in {"q", "escape", "end"}:
                        return
                    frame.first = max(0, frame.first + SCROLL.get(key.result(), 0))
                    key = asyncio.ensure_future(pressed.get())
                elif change.done():
                    await asyncio.wait({key}, timeout=STEADY)
                if change.done():
                    change = asyncio.ensure_future(news.changed())
        finally:
            key.cancel()
            change.cancel()


def _check(picture: Picture, site: str | None) -> None:
    if site is not None and site not in picture.sites():
        known = ", ".join(picture.sites()) or "none"
        raise UnknownSite(f"no bus knows a site {site!r}; known are {known}")


def as_values(picture: Picture, site: str | None, now: float) -> dict[str, Any]:
    """Give a picture as plain values."""
    sites = [name for name in picture.sites() if site in {None, name}]
    items = [item for item in attention(picture, now) if site in {None, item.site} or not item.site]
    jobs = sorted(
        (record for name, record in picture.jobs.items() if name.site in sites),
        key=lambda record: (record.key, -record.task),
        reverse=True,
    )
    return {
        "at": now,
        "attention": msgspec.to_builtins(items),
        "buses": msgspec.to_builtins(list(picture.buses.values())),
        "sites": [
            {
                "site": name,
                "jobs": dict(picture.counts(name)),
                "agents": [
                    {
                        "condition": agent.condition(now),
                        "age": agent.age(now),
                        "leader": agent.leader,
                        "heartbeat": msgspec.to_builtins(agent.heartbeat),
                    }
                    for agent in picture.present_agents(name, now)
                ],
            }
            for name in sites
        ],
        "jobs": [record_json(record) for record in jobs],
    }
