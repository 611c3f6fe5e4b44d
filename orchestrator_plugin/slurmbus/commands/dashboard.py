"""``slurmbus dashboard``."""

from __future__ import annotations

import logging
import webbrowser

import click

from slurmbus.commands.boards import further_buses
from slurmbus.commands.console import tell
from slurmbus.commands.options import log_options
from slurmbus.dashboard.links import Links
from slurmbus.dashboard.serving import DEFAULT_PORT, Addresses, run_dashboard
from slurmbus.home import Home
from slurmbus_protocol import logs


@click.command("dashboard")
@click.option("--listen", "host", default="127.0.0.1", show_default=True, metavar="HOST", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), help=f"[default: {DEFAULT_PORT}, or a free one]")
@click.option("--name", "names", multiple=True, metavar="NAME", help="Another name of this server, e.g. of a proxy.")
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Whether only who is signed in may look. Every user of this machine reaches the loopback.",
)
@click.option("--open", "opened", is_flag=True, help="Open it in the browser, signed in.")
@click.option("--link", is_flag=True, help="Print a new link to the one that runs, and end.")
@log_options
def command(
    host: str,
    port: int | None,
    names: tuple[str, ...],
    *,
    private: bool,
    opened: bool,
    link: bool,
    log_format: str,
) -> None:
    """Serve a page that shows every site's agent and jobs, live.

    Whoever opens the link that is printed is signed in and may look, cancel and requeue; it works once.
    """
    home = Home.default()
    if link:
        click.echo(Links.of(home).link())
        return
    logs.set_up(log_format, logging.WARNING if log_format == logs.TEXT else logging.INFO)

    def ready(addresses: Addresses) -> None:
        tell(f"dashboard: {addresses.page}", log_format, bold=True)
        # It lets in whoever opens it first, so no log shall have it.
        click.echo(f"sign in: {addresses.signed_in}", err=log_format == logs.TEXT)
        if opened:
            webbrowser.open(addresses.opening().as_uri())

    run_dashboard(home, host, port, further=further_buses(), names=names, private=private, ready=ready)
