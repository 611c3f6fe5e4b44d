"""``slurmbus dashboard``."""

from __future__ import annotations

import logging
import webbrowser

import click

from slurmbus.commands.boards import further_buses
from slurmbus.commands.console import tell
from slurmbus.commands.options import log_options
from slurmbus.dashboard.serving import DEFAULT_PORT, Addresses, run_dashboard
from slurmbus.home import Home
from slurmbus_protocol import logs


@click.command("dashboard")
@click.option("--listen", "host", default="127.0.0.1", show_default=True, metavar="HOST", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), help=f"[default: {DEFAULT_PORT}, or a free one]")
@click.option("--name", "names", multiple=True, metavar="NAME", help="Another name of this server, e.g. of a proxy.")
@click.option(
    "--private/--public",
    default=None,
    help="Whether only who is signed in may look. [default: --public on the loopback, else --private]",
)
@click.option("--open", "opened", is_flag=True, help="Open it in the browser, signed in.")
@log_options
def command(
    host: str, port: int | None, names: tuple[str, ...], *, private: bool | None, opened: bool, log_format: str
) -> None:
    """Serve a page that shows every site's agent and jobs, live.

    It is read-only; whoever opens the second address that is printed is signed in and may cancel jobs.
    """
    logs.set_up(log_format, logging.WARNING if log_format == logs.TEXT else logging.INFO)

    def ready(addresses: Addresses) -> None:
        tell(f"dashboard: {addresses.page}", log_format, bold=True)
        # It holds a secret, which no log shall have.
        click.echo(f"signed in: {addresses.signed_in}", err=log_format == logs.TEXT)
        if opened:
            webbrowser.open(addresses.signed_in)

    run_dashboard(Home.default(), host, port, further=further_buses(), names=names, private=private, ready=ready)
