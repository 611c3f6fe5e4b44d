"""The asynchronous half of a connection: the bus, the blobs' bus, and the set-up of both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import cached_property
from typing import Any, Self

from slurmbus.outbox import Outbox, SignedRequest
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.bus import RETRY_DELAYS, Bus
from slurmbus_protocol.errors import BusUnreachable, SlurmbusError
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.streams import ensure_consumer, ensure_streams

log = logging.getLogger(__name__)

CONNECT_DELAYS = RETRY_DELAYS[:4]
"""A server that is restarted is back within a second or two; a person shall not wait longer for "not reachable"."""
ADDRESS_INTERVAL = 5.0
"""Seconds between two looks at the home's address while its server is away."""


class Session:
    """Connects at the first use, and sets the bus up again when it turns out to be another one.

    An async context manager.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self.bus_id = ""
        """The id of the bus that was last set up; another one means that its streams started anew."""
        self.outbox = Outbox()
        self._sites: set[str] = set()
        self._bus: Bus | None = None
        self._blobs: Bus | None = None
        self._opening = asyncio.Lock()
        self._set_up_done = asyncio.Event()
        self._set_up_problem = ""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin; nothing is opened yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what was adopted, then close both connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._bus = self._blobs = None
        await self._stack.aclose()

    @property
    def problem(self) -> str:
        """What is wrong with the bus, as far as it is known."""
        return (self._bus.problem if self._bus is not None else "") or self._set_up_problem

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Let a task that uses the bus end before the bus is closed."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @cached_property
    def signer(self) -> Signer:
        """The key that signs requests."""
        return self.settings.signer()

    async def bus(self) -> Bus:
        """Give the connection; at the first use connect and set the bus up.

        Raises:
            BusUnreachable: it doesn't answer; the next call tries again.
            BusMisconfigured: its streams have other settings.
        """
        async with self._opening:
            if self._bus is None:
                async with contextlib.AsyncExitStack() as stack:
                    bus = await self._connected(stack)
                    seen = bus.connections
                    await self._set_up(bus)
                    for name, work in (
                        ("bus set-up", self._keep_set_up(bus, seen)),
                        ("requests for a new bus", self._keep_published(bus, self.bus_id)),
                    ):
                        stack.push_async_callback(_end, asyncio.create_task(work, name=name))
                    await self._stack.enter_async_context(stack.pop_all())
                self._bus = bus
            return self._bus

    async def blobs(self) -> Bus:
        """Give the second connection, so that files don't hold up events."""
        await self.bus()  # sets the streams up
        async with self._opening:
            if self._blobs is None:
                self._blobs = await self._connected(self._stack)
            return self._blobs

    async def _connected(self, stack: contextlib.AsyncExitStack) -> Bus:
        for delay in CONNECT_DELAYS:
            with contextlib.suppress(BusUnreachable):
                return await stack.enter_async_context(Bus(self.settings.bus_settings()))
            await asyncio.sleep(delay)
        return await stack.enter_async_context(Bus(self.settings.bus_settings()))

    async def site_bus(self, site: str) -> Bus:
        """Give the connection, with the consumer from which the site's agent takes its requests."""
        bus = await self.bus()
        if site not in self._sites:
            await ensure_consumer(bus, site, self.bus_id)
            self._sites.add(site)
        return bus

    async def another_bus(self, seen: str) -> str:
        """Wait until the bus is another one than ``seen``, and set up; give its id."""
        while self.bus_id == seen:
            self._set_up_done.clear()
            await self._set_up_done.wait()
        return self.bus_id

    async def _set_up(self, bus: Bus) -> None:
        bus_id = await ensure_streams(bus)
        await asyncio.gather(*(ensure_consumer(bus, site, bus_id) for site in self._sites))
        if self.bus_id and self.bus_id != bus_id:
            log.warning("the bus is another one: its streams started anew")
        self.bus_id = bus_id
        self._set_up_done.set()

    async def _keep_set_up(self, bus: Bus, seen: int) -> None:
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(ADDRESS_INTERVAL):
                    seen = await bus.next_connection(seen)
            except TimeoutError:
                if not bus.connected and not self.settings.servers:
                    for one in (bus, self._blobs or bus):
                        one.settings = self.settings.bus_settings()  # the home's server may have moved to another port
                continue
            try:
                await self._set_up(bus)
                attempt, self._set_up_problem = 0, ""
            except SlurmbusError as error:
                self._set_up_problem = error.message
                log.log(logging.WARNING if attempt == 1 else logging.DEBUG, "the bus couldn't be set up: %s", error)
                await asyncio.sleep(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)])
                attempt += 1
                seen -= 1  # try again with this connection

    async def _keep_published(self, bus: Bus, seen: str) -> None:
        """Publish again, on each bus that starts anew, what no agent is known to have made durable."""
        while True:
            seen = await self.another_bus(seen)
            for request in self.outbox.all():
                await self._publish_again(bus, request)

    async def _publish_again(self, bus: Bus, request: SignedRequest) -> None:
        attempt = 0
        while self.outbox.holds(request):
            try:
                await self.outbox.publish(request, bus, self.blobs)
            except SlurmbusError as error:
                log.log(
                    logging.WARNING if attempt == 1 else logging.DEBUG,
                    "%s isn't published again: %s",
                    request.subject,
                    error,
                )
                if not error.retryable:
                    return
                await asyncio.sleep(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)])
                attempt += 1
            else:
                return

    async def publish_again(self, site: str, key: str) -> None:
        """Publish what is kept for one job, unless the bus has it; BusUnreachable or BusFull when that fails."""
        bus = await self.bus()
        for request in self.outbox.of_job(site, key):
            await self.outbox.publish(request, bus, self.blobs)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
