"""Owning the embedded server of a home: in the foreground, or inside the local helper."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Self

from slurmbus.connection import Connection
from slurmbus.forgetting import granting_wishes
from slurmbus.home import BusAddress, Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.embedded import EmbeddedServer
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.streams import BusLimits

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.2
"""Seconds between two looks at the profiles: a new site's agent may connect that soon. A look is one directory scan."""

RESTART_INTERVAL = 2.0
"""Seconds between two attempts to start a server that doesn't come up."""
RENEW_INTERVAL = 3600.0
"""Seconds between two looks whether the certificate is to be renewed, which is due months before its end."""
ROOM = 4 * 1024 * 1024
"""Bytes that must be free before a server whose disk was full is started again: a block of its store."""


class ServerOwner:
    """Runs the embedded server of a home, gives every site's agent its permissions, and restarts it when it dies.

    The server dies with the thread that started it, also when that is killed (on Linux).

    Args:
        home: whose server.
        host: where it listens; None keeps what was chosen before, at first the loopback.
        port: None keeps what was chosen before, at first a free one.
        websocket: port for WebSocket connections; None keeps what was chosen before, at first none.
        limits: of the streams.
    """

    def __init__(
        self,
        home: Home,
        host: str | None = None,
        port: int | None = None,
        *,
        websocket: int | None = None,
        limits: BusLimits | None = None,
    ) -> None:
        self.home = home
        self.address: BusAddress = home.set_bus_address(host, port, websocket)
        home.renew_certificate()
        self._profiles = home.profiles_state()
        self._restart_at = 0.0
        self._renew_at = time.monotonic() + RENEW_INTERVAL
        self._told_full = False
        self.server = EmbeddedServer(
            home.bus_folder,
            home.bus_users(),
            host=self.address.host,
            port=self.address.port,
            limits=limits,
            tied=True,
            tls=home.tls,
            websocket=self.address.websocket,
        )
        self.server.also_plain = home.also_plain()

    def __enter__(self) -> Self:
        """Start the server; BusUnreachable when it doesn't come up or another process owns it."""
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.server.stop()

    def look(self) -> None:
        """Take over changed profiles, and start a dead server again. Call it every LOOK_INTERVAL."""
        profiles = self.home.profiles_state()
        if profiles != self._profiles:
            self._profiles = profiles
            users = self.home.bus_users()
            log.info("the sites changed: %s", ", ".join(user.name for user in users[1:]) or "none")
            plain, self.server.also_plain = self.server.also_plain, self.home.also_plain()
            self.server.set_users(users)
            if plain != self.server.also_plain:  # nats-server takes this up at a start only
                self.server.kill()
                self._restart("the bus lets nobody in any more who doesn't know TLS")
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + RENEW_INTERVAL
            if self.server.renew():
                log.info("the bus has a new certificate")
        if not self.server.alive:
            self._restart("the bus died")
        elif self.server.look_for_failed_writes():
            if self.server.free_bytes >= ROOM:
                self.server.kill()  # what it has acknowledged is on the disk
                self._restart("the bus's disk was full and has room again")
            elif not self._told_full:
                log.error("the disk of %s is full: the bus stores nothing until there is room", self.server.folder)
                self._told_full = True

    def _restart(self, why: str) -> None:
        if time.monotonic() < self._restart_at:
            return
        log.warning("%s: it is started again", why)
        try:
            self.server.restart()
        except BusUnreachable as error:
            log.warning("%s", error)
            self._restart_at = time.monotonic() + RESTART_INTERVAL
        else:
            self._told_full = False


def run_bus(
    home: Home,
    host: str | None = None,
    port: int | None = None,
    *,
    websocket: int | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run the embedded server until SIGINT or SIGTERM; for ``slurmbus bus run``, in the main thread.

    Args:
        home: whose server.
        host: where it listens; None keeps what was chosen before.
        port: None keeps what was chosen before.
        websocket: port for WebSocket connections; None keeps what was chosen before.
        ready: called with the address when the server takes connections.

    Raises:
        BusUnreachable: it doesn't come up, or another process owns it.
    """
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        connection = Connection.get(ConnectionSettings(credentials=home.credentials, home=home.path))
        with (
            ServerOwner(home, host, port, websocket=websocket) as owner,
            closing(connection),
            granting_wishes(connection),
        ):
            if ready is not None:
                ready(owner.address.url)
            while not stop.wait(LOOK_INTERVAL):
                owner.look()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
