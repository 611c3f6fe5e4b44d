"""``slurmbus bus``."""

from __future__ import annotations

import ipaddress
import logging

import click

from slurmbus.commands.console import tell
from slurmbus.commands.options import log_options
from slurmbus.home import Home
from slurmbus.owner import run_bus
from slurmbus_protocol import logs


@click.group("bus")
def command() -> None:
    """Run this home's own NATS server."""


@command.command("run")
@click.option("--listen", metavar="HOST", help="Where to listen; kept for later. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Kept for later. [default: a free one]")
@log_options
def run(listen: str | None, port: int | None, log_format: str) -> None:
    """Run the server in the foreground, until Ctrl-C.

    Its address stays the same from one start to the next, so that agents and tunnels find it again.
    """
    home = Home.default()
    logs.set_up(log_format, logging.INFO)

    def ready(url: str) -> None:
        tell(f"the bus of {home.path} listens on {url}", log_format, bold=True)
        address = home.bus_address()
        if address is not None and not _is_loopback(address.host):
            words = "it isn't encrypted: let only machines in that you trust, or use a tunnel"
            tell(words, log_format, colour="yellow")

    run_bus(home, listen, port, ready=ready)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
