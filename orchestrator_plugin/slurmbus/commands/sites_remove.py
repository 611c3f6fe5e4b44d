"""``slurmbus sites remove``."""

from __future__ import annotations

import time

import click

from slurmbus.bootstrap import journal
from slurmbus.bootstrap.down import abandon
from slurmbus.client import SiteClient
from slurmbus.commands.console import note
from slurmbus.connection import Connection
from slurmbus.forgetting import BusCleaner
from slurmbus.home import EMBEDDED, Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import InvalidSetting, SlurmbusError

CUT_OFF = 1.0
"""Seconds until this home's server has cut off the agent of a removed site, several looks at the profiles
(``owner.LOOK_INTERVAL``): what it publishes until then would stay."""


@click.command("remove")
@click.argument("name")
@click.option("--agent-gone", is_flag=True, help="Also a site that is up: nobody gets in there any more.")
def command(name: str, *, agent_gone: bool) -> None:
    """Forget a site, its agent's key and its last heartbeats; its jobs aren't touched.

    A site that is up has to be taken down first: without its settings nobody could end what keeps its agent running.
    """
    home = Home.default()
    profile = home.site(name)
    if journal.read(home, name) is not None:
        if not agent_gone:
            raise InvalidSetting(
                f"site {name} is up",
                hint=f"'slurmbus down {name}' first; or, if nobody gets in there any more, use --agent-gone",
            )
        abandon(home, name)
    client = SiteClient(Connection.get(ConnectionSettings.of_site(home, name)), name)
    own_bus = profile.bus == EMBEDDED
    home.remove_site(name)
    if own_bus:
        note(f"site {name} is removed; its agent can't connect any more")
    else:
        note(f"site {name} is removed here, and the bus still lets its agent in. Unless others use it, on the server:")
        note(f"  slurmbus bus users remove TEAM {name}")
    try:
        _forget_heartbeats(client, own_bus=own_bus)
    except SlurmbusError as error:
        note(f"its last heartbeat stays on the bus, and is shown: {error.message}", colour="yellow")


def _forget_heartbeats(client: SiteClient, *, own_bus: bool) -> None:
    """Remove them from the bus, unless an agent goes on: other members of a team may use the same site."""
    alive = [status.heartbeat.host for status in client.heartbeats() if status.alive]
    if alive and not own_bus:
        note(f"an agent on {alive[0]} still serves it, so its heartbeats stay on the bus", colour="yellow")
        return
    if alive:
        time.sleep(CUT_OFF)
    client.connection.run(_forget(client))


async def _forget(client: SiteClient) -> None:
    await BusCleaner(await client.connection.session.bus()).forget_agents(client.site)
