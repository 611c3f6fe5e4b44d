"""Runs the dashboard's server in the foreground."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from slurmbus.bearer import Bearer
from slurmbus.dashboard.app import Dashboard
from slurmbus.dashboard.guard import LOOPBACK
from slurmbus.dashboard.links import Links
from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import InvalidSetting

DEFAULT_PORT = 8470
WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound
SHUTDOWN_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Addresses:
    """How to open the page."""

    page: str
    signed_in: str
    """Whoever opens this one first is signed in."""
    opening: Callable[[], Path]
    """Makes a file that leads a browser to such a link."""


def run_dashboard(
    home: Home,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    further: Collection[ConnectionSettings] = (),
    names: Collection[str] = (),
    private: bool = True,
    ready: Callable[[Addresses], None],
) -> None:
    """Serve the page until SIGINT or SIGTERM, in the main thread.

    Args:
        home: whose sites are shown.
        host: where to listen.
        port: None takes DEFAULT_PORT, or a free one when that is taken.
        further: other buses to follow.
        names: further names by which browsers may call the server (of a proxy, for example).
        private: only who is signed in may look: every user of this machine reaches the loopback.
        ready: called when browsers can come.

    Raises:
        InvalidSetting: the address, or a site's profile, can't be used.
    """
    home.sites()  # whoever reads them later can only say so in a log
    listening = _listen(host, port)
    shown = socket.gethostname() if host in WILDCARDS else host
    hosts = {*LOOPBACK, host, shown, *names} - WILDCARDS
    bound = listening.getsockname()[1]
    page = f"http://[{shown}]:{bound}/" if ":" in shown else f"http://{shown}:{bound}/"
    links = Links.of_page(page)
    links.save(home)
    dashboard = Dashboard(home, hosts, links, Bearer(home.metrics_token()), further, private=private)
    config = uvicorn.Config(
        dashboard.app,
        log_level="warning",
        log_config=None,  # it says what it says in the process's own log
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=64 * 1024,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    addresses = Addresses(page, links.link(), lambda: links.opening(home))
    server = _Server(config, lambda: ready(addresses), lambda: links.forget(home))
    with listening:
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], ended: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._ended = ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ended()  # here, because the signal that ends the server then ends the process, too
        await super().shutdown(sockets)


def _listen(host: str, port: int | None) -> socket.socket:
    for attempt in (DEFAULT_PORT, 0) if port is None else (port,):
        try:
            return socket.create_server((host, attempt), family=_family(host))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or attempt != DEFAULT_PORT or port is not None:
                problem = error.strerror or str(error)
                raise InvalidSetting(
                    f"can't listen on {host} port {attempt}: {problem}", hint="choose another one"
                ) from error
    raise AssertionError("the last attempt takes any free port")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
