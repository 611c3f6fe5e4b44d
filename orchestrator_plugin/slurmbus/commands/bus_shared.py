"""``slurmbus bus init`` and ``slurmbus bus users``: a team's own NATS server."""

from __future__ import annotations

from pathlib import Path

import click

from slurmbus.commands.console import note, show_json, show_table
from slurmbus.commands.options import json_option
from slurmbus.shared_bus import SharedBus
from slurmbus_protocol.errors import InvalidSetting

_file = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)
_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("slurmbus-server"),
    show_default=True,
    help="The server's folder.",
)


@click.command("init")
@_folder
@click.option("--host", metavar="NAME", help="The name by which members reach it. Needed the first time.")
@click.option("--team", "teams", multiple=True, metavar="NAME", help="Add a team: an account of its own.")
@click.option("--listen", metavar="ADDRESS", help="Where to listen. [default: 0.0.0.0]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: 4222]")
@click.option(
    "--websocket",
    type=click.IntRange(1, 65535),
    is_flag=False,
    flag_value=443,
    metavar="[PORT]",
    help="Take WebSocket connections, too. [default port: 443]",
)
@click.option("--certificate", type=_file, help="The server's certificate with its chain, instead of one made here.")
@click.option("--key", type=_file, help="Its key.")
def init(
    folder: Path,
    host: str | None,
    teams: tuple[str, ...],
    listen: str | None,
    port: int | None,
    websocket: int | None,
    certificate: Path | None,
    key: Path | None,
) -> None:
    """Write the configuration of a shared NATS server, or change it; users stay, and the certificate is renewed.

    Start it with 'nats-server -c FOLDER/nats.conf', on a host that Dagster's machines and the login nodes reach.
    """
    bus = SharedBus(folder)
    if host is None:
        host = SharedBus.open(folder).settings_in_force.host
    bus.make(
        host,
        listen=listen,
        port=port,
        websocket=websocket,
        certificate=str(certificate) if certificate else None,
        key=str(key) if key else None,
    )
    for team in teams:
        bus.add_team(team)
    note(f"{bus.configuration} is written. Next:", bold=True)
    note(f"  1. start it:       nats-server -c {bus.configuration}")
    note(f"     or, if it runs: nats-server --signal reload={bus.pid_file}")
    note(f"  2. let people in:  slurmbus bus users add TEAM NAME --folder {folder}")
    note(f"     and agents:     slurmbus bus users add TEAM SITE --agent --nkey U… --folder {folder}")
    if bus.authority is not None:
        note(f"  3. give members:   {bus.authority} (not secret)")


@click.group("users", invoke_without_command=True)
@_folder
@json_option
@click.pass_context
def users(context: click.Context, folder: Path, *, as_json: bool) -> None:
    """List who may connect to a shared server, and change it."""
    if context.invoked_subcommand is not None:
        return
    teams = SharedBus.open(folder).settings_in_force.teams
    rows = [
        (team.name, user.name, "agent" if user.agent else "user", user.nkey) for team in teams for user in team.users
    ]
    if as_json:
        show_json([dict(zip(("team", "name", "kind", "nkey"), row, strict=True)) for row in rows])
        return
    show_table(("TEAM", "NAME", "KIND", "NKEY"), rows, [None] * len(rows))


@users.command("add")
@click.argument("team")
@click.argument("name")
@click.option("--agent", is_flag=True, help="NAME is a site, and this its agent.")
@click.option("--nkey", metavar="U…", help="The public key. [default: a key is made]")
@_folder
def add(team: str, name: str, nkey: str | None, folder: Path, *, agent: bool) -> None:
    """Let a person, a Dagster deployment or an agent in, or change their key."""
    bus = SharedBus.open(folder)
    seed = bus.add_user(team, name, nkey, agent=agent)
    _reload(bus)
    if agent:
        return
    note(f"{name} needs, on the machine with Dagster:", bold=True)
    if seed is not None:
        note(f"  {seed} (secret: the key)")
    authority = f" --ca {bus.authority.name}" if bus.authority else ""
    if bus.authority is not None:
        note(f"  {bus.authority}")
    urls = " ".join(f"--url {url}" for url in bus.urls)
    credentials = f" --credentials {seed.name}" if seed else ""
    note(f"  slurmbus sites add SITE {urls}{authority}{credentials}")


@users.command("remove")
@click.argument("team")
@click.argument("name")
@_folder
def remove(team: str, name: str, folder: Path) -> None:
    """Let somebody in no more; a reload ends their connections."""
    bus = SharedBus.open(folder)
    if not bus.remove_user(team, name):
        raise InvalidSetting(f"team {team} has no user {name!r}")
    _reload(bus)


def _reload(bus: SharedBus) -> None:
    note(f"{bus.configuration} is written; it holds from: nats-server --signal reload={bus.pid_file}")
