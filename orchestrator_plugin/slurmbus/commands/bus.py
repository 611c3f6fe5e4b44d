"""``slurmbus bus``."""

from __future__ import annotations

import ipaddress

import click

from slurmbus.commands.console import note
from slurmbus.home import Home
from slurmbus.owner import run_bus


@click.group("bus")
def command() -> None:
    """Run this home's own NATS server."""


@command.command("run")
@click.option("--listen", metavar="HOST", help="Where to listen; kept for later. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Kept for later. [default: a free one]")
def run(listen: str | None, port: int | None) -> None:
    """Run the server in the foreground, until Ctrl-C.

    Its address stays the same from one start to the next, so that agents and tunnels find it again.
    """
    home = Home.default()

    def ready(url: str) -> None:
        note(f"the bus of {home.path} listens on {url}", bold=True)
        address = home.bus_address()
        if address is not None and not _is_loopback(address.host):
            note("it isn't encrypted: let only machines in that you trust, or use a tunnel", colour="yellow")

    run_bus(home, listen, port, ready=ready)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
