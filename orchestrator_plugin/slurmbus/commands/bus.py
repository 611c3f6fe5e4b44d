"""``slurmbus bus``."""

from __future__ import annotations

import logging

import click

from slurmbus.commands.bus_shared import init, users
from slurmbus.commands.console import tell
from slurmbus.commands.options import log_options
from slurmbus.home import Home
from slurmbus.owner import run_bus
from slurmbus_protocol import logs


@click.group("bus")
def command() -> None:
    """Run this home's own NATS server, or set up one for a team."""


command.add_command(init)
command.add_command(users)


@command.command("run")
@click.option("--listen", metavar="HOST", help="Where to listen; kept for later. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Kept for later. [default: a free one]")
@log_options
@click.option(
    "--websocket",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Take WebSocket connections, too; kept for later.",
)
def run(listen: str | None, port: int | None, websocket: int | None, log_format: str) -> None:
    """Run the server in the foreground, until Ctrl-C.

    Its address stays the same from one start to the next, so that agents and tunnels find it again. Connections are
    encrypted; each agent's file names the authority that it accepts.
    """
    home = Home.default()
    logs.set_up(log_format, logging.INFO)

    def ready(url: str) -> None:
        tell(f"the bus of {home.path} listens on {url}", log_format, bold=True)
        old = home.sites_without_tls()
        if old and home.also_plain():
            words = f"it lets unencrypted agents in, too, until these sites are added again: {', '.join(old)}"
            tell(words, log_format)
        elif old:
            words = f"copy the agents' files again, they name its certificate's authority: {', '.join(old)}"
            tell(words, log_format, colour="yellow")

    run_bus(home, listen, port, websocket=websocket, ready=ready)
