"""``slurmbus sites``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from slurmbus.client import SiteClient
from slurmbus.commands import sites_remove
from slurmbus.commands.console import duration, note, show_json, show_table
from slurmbus.commands.options import json_option
from slurmbus.connection import Connection
from slurmbus.events import AgentStatus
from slurmbus.home import EMBEDDED, Home, SiteProfile
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.embedded import public_key
from slurmbus_protocol.errors import BusUnreachable, InvalidSetting
from slurmbus_protocol.messages import SchedulerHealth
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.streams import agent_permissions

COLUMNS = ("SITE", "BUS", "AGENT", "HEARTBEAT", "SCHEDULER", "JOBS", "ALARMS")


@click.group("sites", invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """List the sites, and how their agents are."""
    if context.invoked_subcommand is not None:
        return
    home = Home.default()
    found = [(profile, *_look(home, profile)) for profile in home.sites()]
    if as_json:
        show_json([_as_json(home, *entry) for entry in found])
        return
    if not found:
        note("There is no site yet. Make one with 'slurmbus sites add NAME'.")
        return
    show_table(COLUMNS, [_row(home, *entry) for entry in found], [_colour(*entry) for entry in found])


@command.command("add")
@click.argument("name")
@click.option("--url", "urls", multiple=True, metavar="URL", help="The team's own bus. [default: this home's server]")
@click.option("--agent-url", "agent_urls", multiple=True, metavar="URL", help="How the agent reaches the bus.")
@click.option(
    "--credentials", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="NKEY seed for --url."
)
@click.option("--ca", "ca_file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TLS authority.")
@click.option("--tls-name", metavar="NAME", help="The name in the bus's certificate, if not the host's in --url.")
@click.option("--allow-plain", is_flag=True, help="The bus may be reached without TLS: the network itself is safe.")
@click.option(
    "--scheduler", type=click.Choice(["auto", "native", "commands", "local"]), default="auto", show_default=True
)
@click.option("--spool", metavar="PATH", help="The agent's spool, on the cluster's shared file system.")
@click.option("--slurm-conf", metavar="PATH", help="slurm.conf on the cluster.")
@click.option("--link-host", metavar="HOST", help="On which address compute nodes reach the agent.")
@click.option("--python", metavar="PROGRAM", help="The Python that starts runners on compute nodes.")
def add(name: str, urls: tuple[str, ...], agent_urls: tuple[str, ...], **settings: Any) -> None:
    """Make a site with its keys, or change its settings; the keys stay."""
    home = Home.default()
    profile = home.add_site(name, urls or None, agent_servers=agent_urls or None, **settings)
    bundle = home.bundle_path(name)
    note(f"site {name} is ready. Next:", bold=True)
    if profile.bus == EMBEDDED:
        note("  1. on this machine:   slurmbus bus run")
    else:
        note(f"  1. on the bus:        slurmbus bus users add TEAM {name} --agent --nkey {profile.agent_nkey}")
        note(f"     or by hand: 'slurmbus sites show {name} --json' gives the agent's permissions")
    note(f"  2. copy the bundle:   scp {bundle} LOGIN:.config/slurmbus/{name}.toml")
    note(f"  3. on the login node: slurmbus-agent run --site {name}")


command.add_command(sites_remove.command)


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> None:
    """Show a site's settings and public keys, and what its agent may do on the bus."""
    home = Home.default()
    profile = home.site(name)
    facts: dict[str, Any] = {
        **msgspec.to_builtins(profile, enc_hook=str),
        "bundle": str(home.bundle_path(name)),
        "client_nkey": _client_nkey(home.path / profile.credentials),
        "client_public_key": Signer.load(home.path / profile.signing_key).public,
    }
    if as_json:
        show_json({**facts, "agent_permissions": agent_permissions(name)})
        return
    for key, value in facts.items():
        click.echo(f"{key:18} {', '.join(value) if isinstance(value, list) else value}")
    click.echo(f"{'agent_permissions':18} {json.dumps(agent_permissions(name), indent=2)}")


def _client_nkey(credentials: Path) -> str:
    try:
        return public_key(credentials.read_text().strip())
    except OSError as error:
        raise InvalidSetting(f"credentials {credentials} can't be read: {error}") from error


def _look(home: Home, profile: SiteProfile) -> tuple[list[AgentStatus], str]:
    """Give the site's agents, and why they aren't known."""
    settings = ConnectionSettings.of_site(home, profile.name)
    try:
        return SiteClient(Connection.get(settings), profile.name).heartbeats(), ""
    except BusUnreachable as error:
        return [], error.message


def _url(home: Home, profile: SiteProfile) -> str:
    if profile.bus != EMBEDDED:
        return ",".join(profile.bus)
    address = home.bus_address()
    return address.url if address else EMBEDDED


def _agent_word(status: AgentStatus) -> str:
    beat = status.heartbeat
    if beat.released:
        return f"stopped ({beat.host})"
    return f"{'running' if status.alive else 'silent'} ({beat.host})"


def _scheduler_word(health: SchedulerHealth, now: float) -> str:
    if not health.silent:
        return health.kind
    return f"{health.kind}: no answer for {duration(max(0.0, now - health.since))}"


def _row(home: Home, profile: SiteProfile, agents: list[AgentStatus], problem: str) -> tuple[str, ...]:
    url = _url(home, profile)
    if problem:
        return (profile.name, f"{url} (unreachable)", "unknown", "", "", "", "")
    if not agents:
        return (profile.name, url, "never seen", "", "", "", "")
    leader = agents[0]
    beat = leader.heartbeat
    return (
        profile.name,
        url,
        _agent_word(leader),
        f"{duration(leader.age)} ago",
        _scheduler_word(beat.scheduler, beat.sent_at),
        str(sum(beat.vitals.jobs.values())),
        ", ".join(beat.alarms),
    )


def _colour(_profile: SiteProfile, agents: list[AgentStatus], problem: str) -> str | None:
    if problem or not agents or not agents[0].alive:
        return "red"
    beat = agents[0].heartbeat
    return "yellow" if beat.alarms or beat.scheduler.silent else "green"


def _as_json(home: Home, profile: SiteProfile, agents: list[AgentStatus], problem: str) -> dict[str, Any]:
    return {
        "site": profile.name,
        "bus": _url(home, profile),
        "bus_reachable": not problem,
        "agents": [
            {"alive": status.alive, "age": status.age, **msgspec.to_builtins(status.heartbeat)} for status in agents
        ],
    }
