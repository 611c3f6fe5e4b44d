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
from slurmbus.dashboard.partitions import PartitionsOf
from slurmbus.errors import UnknownSite
from slurmbus.picture import JobName, Picture

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

    Keys: q ends it; the arrows and page keys go through the jobs, Enter shows the one on top with its way and its
    output, p the partitions; Escape goes back.
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
            await _redraw(Views(board, frame, live), live, news)


class Views:
    """What is on the screen: the frame, or a job or the partitions in its place.

    Args:
        board: what is known.
        frame: what there is at first.
        live: the screen.
    """

    def __init__(self, board: Board, frame: Frame, live: Live) -> None:
        self._board = board
        self._frame = frame
        self._live = live
        self._partitions = PartitionsOf(board)
        self._filling: asyncio.Task[None] | None = None

    def press(self, key: str) -> bool:
        """Do what a key stands for; False when a person has seen enough."""
        if key in {"q", "end"} or (key == "escape" and self._filling is None):
            return False
        if self._filling is not None:
            if key in {"escape", "\x7f", "\n"}:
                self.close()
        elif key == "\n" and (name := self._frame.top()) is not None:
            self._open_job(name)
        elif key == "p":
            self._open_partitions()
        else:
            self._frame.first = max(0, self._frame.first + SCROLL.get(key, 0))
        return True

    def close(self) -> None:
        """Go back to the frame."""
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None
        self._live.update(self._frame)

    def _open_job(self, name: JobName) -> None:
        from slurmbus.commands.top_job import JobFrame  # noqa: PLC0415

        job = JobFrame(self._board.picture, name)
        self._live.update(job)
        self._filling = asyncio.ensure_future(job.follow(self._board.site(name.site)))

    def _open_partitions(self) -> None:
        from slurmbus.commands.top_partitions import PartitionsFrame  # noqa: PLC0415

        found = PartitionsFrame(self._frame.sites())
        self._live.update(found)
        self._filling = asyncio.ensure_future(found.ask(self._partitions))


async def _redraw(views: Views, live: Live, news: News) -> None:
    """Draw until a person has seen enough."""
    with keys() as pressed:
        key = asyncio.ensure_future(pressed.get())
        change = asyncio.ensure_future(news.changed())
        try:
            while True:
                live.refresh()
                await asyncio.wait({key, change}, timeout=REDRAW, return_when=asyncio.FIRST_COMPLETED)
                if key.done():
                    if not views.press(key.result()):
                        return
                    key = asyncio.ensure_future(pressed.get())
                elif change.done():
                    await asyncio.wait({key}, timeout=STEADY)
                if change.done():
                    change = asyncio.ensure_future(news.changed())
        finally:
            views.close()
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
                        "leader": agent.leader and not agent.heartbeat.released,
                        "heartbeat": msgspec.to_builtins(agent.heartbeat),
                    }
                    for agent in picture.present_agents(name, now)
                ],
            }
            for name in sites
        ],
        "jobs": [record_json(record) for record in jobs],
    }
