"""``slurmbus keys``."""

from __future__ import annotations

import re

import click

from slurmbus import keys
from slurmbus.client import SiteClient
from slurmbus.commands.console import note, show_json, show_table
from slurmbus.commands.options import json_option, open_site
from slurmbus.home import EMBEDDED, Home
from slurmbus_protocol.errors import InvalidSetting, SiteUnreachable
from slurmbus_protocol.messages import SiteKey
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.signing import Signer

COLUMNS = ("NAME", "KEY", "CAME BY", "IN PLACE OF", "STATE")
_KEY = re.compile(r"[0-9a-f]{64}")
_site = click.option("--site", envvar="SLURMBUS_SITE", metavar="NAME", help="The site. [env: SLURMBUS_SITE]")
_login = click.option(
    "--login", is_flag=True, help="Don't ask the agent: the next login ('slurmbus up') brings it to the site."
)


@click.group("keys")
def command() -> None:
    """List, replace, revoke and trust signing keys; a change takes effect at once, without a restart."""


@command.command("list")
@_site
@json_option
def list_(site: str | None, *, as_json: bool) -> None:
    """List the keys whose requests a site's agent accepts, and those that are over."""
    found = keys.known(open_site(site, local=False))
    if as_json:
        show_json([{name: getattr(key, name) for name in key.__struct_fields__} for key in found])
        return
    show_table(COLUMNS, [_row(key) for key in found], [None] * len(found))


@command.command("trust")
@_site
@_login
@click.option("--name", required=True, help="For people: alice@laptop, team-production.")
@click.argument("key")
def trust(site: str | None, key: str, name: str, *, login: bool) -> None:
    """Let a site accept requests of another public key (64 hex digits) as well."""
    _check(key)
    client = open_site(site, local=False)
    if not login:
        keys.trust(client, key, name)
    keys.pin(Home.default(), client.site, PinnedKey(name=name, key=key))
    note(f"site {client.site} accepts requests of {name} {_when(client, login=login)}")


@command.command("revoke")
@_site
@_login
@click.argument("key")
def revoke(site: str | None, key: str, *, login: bool) -> None:
    """Accept nothing of a public key any more, nor of those that it brought in. It can't come back."""
    _check(key)
    client = open_site(site, local=False)
    if not login:
        keys.revoke(client, key)
    keys.revoke_by_login(Home.default(), client.site, key)
    note(f"site {client.site} accepts nothing of {key[:16]}… {_when(client, login=login)}")


@command.command("rotate")
@_site
@_login
def rotate(site: str | None, *, login: bool) -> None:
    """Make a new signing key for a site; the old one, which signs that, is accepted for another day.

    With --login what the old key has signed isn't accepted any more once the login has brought the new one.
    """
    home, client = Home.default(), open_site(site, local=False)
    if login:
        signer = Signer.generate()
        keys.take(home, client.site, signer)
        public = signer.public
    else:
        try:
            public = keys.rotate(home, client)
        except SiteUnreachable as error:
            raise SiteUnreachable(error.message, hint="nothing is changed; use --login and log in") from error
    note(f"requests to site {client.site} are signed with {public[:16]}… {_when(client, login=login)}")


@command.command("rotate-agent")
@click.option("--finish", is_flag=True, help="The agent uses the new key: let this home's server forget the old one.")
@click.argument("site")
def rotate_agent(site: str, *, finish: bool) -> None:
    """Make a new bus key for a site's agent.

    This home's server knows both until --finish. A team's server knows one: once it was told the new key, the agent is
    away until 'slurmbus up'; its jobs go on.
    """
    home = Home.default()
    own_bus = home.site(site).bus == EMBEDDED
    if finish:
        keys.finish_agent(home, site)
        note(f"{'the bus knows' if own_bus else 'this machine keeps'} only the new key of site {site}'s agent")
        return
    profile = keys.rotate_agent(home, site)
    note(f"the agent of site {site} gets the bus key {profile.agent_nkey}. Next:", bold=True)
    if not own_bus:
        note(f"  1. on the bus:      slurmbus bus users add TEAM {site} --agent --nkey {profile.agent_nkey}")
        note(f"  2. bring it there:  slurmbus up {site}")
        return
    note(f"  1. bring it there:  slurmbus up {site}")
    note(f"  2. afterwards:      slurmbus keys rotate-agent {site} --finish")


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise InvalidSetting(
            f"{key[:70]!r} is no public key", hint="64 hex digits, as 'slurmbus sites show' gives them"
        )


def _when(client: SiteClient, *, login: bool) -> str:
    return f"from the next 'slurmbus up {client.site}' on" if login else "from now on"


def _row(key: SiteKey) -> tuple[str, ...]:
    state = "revoked" if key.revoked else "replaced" if key.retires_at is not None else "trusted"
    came = key.by[:16] if key.by else "login"
    return (key.name, key.key, came, key.succeeds[:16], state)
