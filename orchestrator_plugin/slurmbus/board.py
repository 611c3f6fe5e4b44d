"""The live picture of every site: what the dashboard, ``slurmbus top`` and ``/metrics`` share.

>>> async with Board(Home.default()) as board:
...     async with board.subscribe() as news:
...         while True:
...             for name in await news.changed(): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Self

from slurmbus.bus_feed import BusFeed
from slurmbus.errors import UnknownSite
from slurmbus.history import History, over_time
from slurmbus.home import Home
from slurmbus.local import LOCAL_SITE, LocalFolder
from slurmbus.picture import Name, Picture
from slurmbus.settings import ConnectionSettings
from slurmbus.site import Site
from slurmbus_protocol.errors import SlurmbusError

log = logging.getLogger(__name__)

HOME_INTERVAL = 2.0
"""Seconds between two looks whether the home knows other sites; each is one directory scan."""


class News:
    """What has changed since it was last asked for: each name once, however often it changed and how slow one asks."""

    def __init__(self) -> None:
        self._names: dict[Name, None] = {}
        self._some = asyncio.Event()

    def tell(self, names: Iterable[Name]) -> None:
        """Note what has changed."""
        self._names.update(dict.fromkeys(names))
        if self._names:
            self._some.set()

    async def changed(self) -> list[Name]:
        """Wait until something has changed, and give the names; what isn't in the picture any more is gone."""
        await self._some.wait()
        self._some.clear()
        names, self._names = list(self._names), {}
        return names


class Board:
    """Follows every bus that a home knows; an async context manager.

    Args:
        home: whose sites; sites that are added or removed later are followed, or not, within seconds.
        further: other buses to follow.
    """

    def __init__(self, home: Home, further: Iterable[ConnectionSettings] = ()) -> None:
        self.home = home
        self.picture = Picture()
        self._further = tuple(further)
        self._feeds: dict[str, tuple[BusFeed, asyncio.Task[None]]] = {}
        self._news: set[News] = set()
        self._group = asyncio.TaskGroup()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to follow; the picture fills within moments."""
        await self._group.__aenter__()
        self._keeper = self._group.create_task(self._keep_following(), name="board")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Stop following."""
        if self._keeper is not None:
            self._keeper.cancel()
        for _, task in self._feeds.values():
            task.cancel()
        if isinstance(error, asyncio.CancelledError):
            await self._group.__aexit__(kind, error, at)
        else:  # the caller's own error stays what it is
            await self._group.__aexit__(None, None, None)

    # ------------------------------------------------------------------ what is asked of it

    @contextlib.asynccontextmanager
    async def subscribe(self) -> AsyncIterator[News]:
        """Be told of changes; at first everything that is known has changed."""
        news = News()
        news.tell(self.picture.names())
        self._news.add(news)
        try:
            yield news
        finally:
            self._news.discard(news)

    def history(self, now: float | None = None, *, step: float = 15.0, buckets: int = 240) -> History:
        """Work out the jobs by state over the last hour, or another time."""
        return over_time(self.picture.jobs.values(), time.time() if now is None else now, step=step, buckets=buckets)

    def site(self, name: str) -> Site:
        """Give the client of a site, on the connection that is open already; UnknownSite when no bus has it."""
        bus = self.picture.bus_of(name)
        if bus is None or bus not in self._feeds:
            raise UnknownSite(f"no bus knows a site {name!r}")
        return Site(self._feeds[bus][0].session, name)

    # ------------------------------------------------------------------ following

    async def _keep_following(self) -> None:
        seen: object = None
        while True:
            homes = self._homes()
            state = [(home.path, home.profiles_state()) for home in homes]
            if state != seen:
                seen = state
                await self._take_over(homes)
            await asyncio.sleep(HOME_INTERVAL)

    async def _take_over(self, homes: Iterable[Home]) -> None:
        try:
            buses = self._buses(homes)
        except SlurmbusError as error:
            log.warning("the sites are followed as they were: %s", error)
            return
        await self._unfollow(buses)
        self._follow(buses)

    def _homes(self) -> list[Home]:
        """Give the home, and that of the local helper while it runs: without it there is no bus to be missed."""
        local = LocalFolder.of(self.home)
        return [self.home, local.home] if _lives(local.pid()) else [self.home]

    def _buses(self, homes: Iterable[Home]) -> dict[str, tuple[ConnectionSettings, tuple[str, ...]]]:
        """Give how to reach each bus, and the sites that are expected there, by its name."""
        buses: dict[str, tuple[ConnectionSettings, tuple[str, ...]]] = {
            bus_name(settings): (settings, ()) for settings in self._further
        }
        for home in homes:
            for profile in home.sites():
                settings = ConnectionSettings.of_site(home, profile.name)
                name = bus_name(settings)
                _, sites = buses.get(name, (settings, ()))
                buses[name] = (settings, (*sites, profile.name))
        return buses

    def _follow(self, buses: Mapping[str, tuple[ConnectionSettings, tuple[str, ...]]]) -> None:
        for name, (settings, sites) in buses.items():
            if name not in self._feeds:
                feed = BusFeed(name, settings, self.picture, self._tell)
                self._feeds[name] = (feed, self._group.create_task(feed.run(), name=f"bus {name}"))
            self._feeds[name][0].expect(sites)

    async def _unfollow(self, buses: Mapping[str, object]) -> None:
        for name in [name for name in self._feeds if name not in buses]:
            _, task = self._feeds.pop(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._tell(self.picture.forget_bus(name))

    def _tell(self, names: Iterable[Name]) -> None:
        names = list(names)
        for news in self._news:
            news.tell(names)


def _lives(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def bus_name(settings: ConnectionSettings) -> str:
    """Name a bus for people: its addresses, or whose server it is."""
    if settings.servers:
        return ", ".join(settings.servers)
    if settings.home is not None and settings.home.name == LOCAL_SITE:
        return "this machine's helper"
    return "this home's server"
