"""The agent's own log, for ``slurmbus logs SITE``: over the bus, or by the login when no agent answers."""

from __future__ import annotations

import sys
import time

import click

from slurmbus.bootstrap import journal
from slurmbus.bootstrap.entering import master_of, visiting
from slurmbus.bootstrap.session import Remote
from slurmbus.client import SiteClient
from slurmbus.commands.console import note
from slurmbus.commands.up import Console
from slurmbus.connection import Connection
from slurmbus.exits import SUCCESS, UNREACHABLE
from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import BusUnreachable, SiteUnreachable
from slurmbus_protocol.messages import AskLog, LogTail

LENGTH = 64 * 1024
FOLLOW_INTERVAL = 2.0
"""Seconds between two questions while the log is followed."""


def is_site(home: Home, name: str) -> bool:
    """Tell whether a word names a site of this home, and so its agent's log is meant."""
    return any(profile.name == name for profile in home.sites())


def show(home: Home, site: str, *, follow: bool, log_in: bool) -> int:
    """Show the end of the log, and what comes, if wanted."""
    client = SiteClient(Connection.get(ConnectionSettings.of_site(home, site)), site)
    try:
        tail = client.ask("log", AskLog(length=LENGTH), LogTail)
    except (SiteUnreachable, BusUnreachable) as error:
        note(f"{error.message}: looking on the login node", colour="yellow")
        return _show_there(home, site, log_in=log_in)
    if not tail.path:
        note(f"the agent on {tail.host} writes its log to where it was started by hand", colour="yellow")
        return UNREACHABLE
    note(f"{tail.path} on {tail.host}", bold=True)
    _write(_from_whole_line(tail.data) if tail.offset else tail.data)
    while follow:
        time.sleep(FOLLOW_INTERVAL)
        end = tail.offset + len(tail.data)
        try:
            tail = client.ask("log", AskLog(length=LENGTH, offset=end), LogTail)
        except SiteUnreachable as error:
            note(error.message, colour="yellow")
            continue
        _write(tail.data)
    return SUCCESS


def _show_there(home: Home, site: str, *, log_in: bool) -> int:
    done = journal.read(home, site)
    if done is None:
        note(f"'slurmbus up {site}' was never run, so it isn't known where the log lies", colour="red")
        return UNREACHABLE
    if not (log_in or master_of(home, site).alive or sys.stdin.isatty()):
        note(f"this needs a login: slurmbus logs {site} --login", colour="red")
        return UNREACHABLE
    with visiting(home, site, Console()) as master, Remote(master) as remote:
        spool = home.site(site).spool or f"{home_of(done.config)}/.slurmbus/{site}"
        folder = f"{spool}/agents"
        names = [name for name in remote.call("names", path=folder) if name.endswith((".log", ".stderr"))]
        for name in names:
            data = remote.read(f"{folder}/{name}") or b""
            if data:
                note(f"{folder}/{name}", bold=True)
                _write(_from_whole_line(data[-LENGTH:]) if len(data) > LENGTH else data)
    return SUCCESS if names else UNREACHABLE


def home_of(config: str) -> str:
    """Give the home on the site in which a configuration lies."""
    return config.partition("/.config/")[0]


def _from_whole_line(data: bytes) -> bytes:
    return data.partition(b"\n")[2]


def _write(data: bytes) -> None:
    click.echo(data.decode(errors="replace"), nl=False)
