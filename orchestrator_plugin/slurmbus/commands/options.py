"""Options that several commands share, and what they open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.home import Home
from slurmbus.local import ensure_local
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import logs

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="JSON for scripts instead of text for people.")


def site_options(function: F) -> F:
    """Add ``--site`` and ``--local``."""
    function = click.option("--local", is_flag=True, help="This machine, by the local helper.")(function)
    return click.option(
        "--site",
        envvar="SLURMBUS_SITE",
        metavar="NAME",
        help="The site; needn't be given when there is only one. [env: SLURMBUS_SITE]",
    )(function)


def log_options(function: F) -> F:
    """Add ``--log-format``, for commands that serve until they are stopped."""
    return click.option(
        "--log-format",
        type=click.Choice(logs.FORMATS),
        envvar=logs.VARIABLE,
        default=logs.TEXT,
        show_default=True,
        help=f"Lines for people, or one JSON object a line. [env: {logs.VARIABLE}]",
    )(function)


def open_site(site: str | None, *, local: bool) -> SiteClient:
    """Give the client of the chosen site.

    Raises:
        UsageError: it isn't clear which site is meant.
        SlurmbusError: the site can't be used.
    """
    if local:
        settings, name = ensure_local()
        return SiteClient(Connection.get(settings), name)
    if site is None:
        names = [profile.name for profile in Home.default().sites()]
        if not names:
            raise click.UsageError("there is no site yet: make one with 'slurmbus sites add NAME', or use --local")
        if len(names) > 1:
            raise click.UsageError(f"which site? Use --site with one of {', '.join(names)}")
        site = names[0]
    return SiteClient(Connection.get(ConnectionSettings.from_env(site=site)), site)


def site_argument(client: SiteClient) -> str:
    """Give the option that names this site again, for hints."""
    return "--local" if client.site == "local" else f"--site {client.site}"
