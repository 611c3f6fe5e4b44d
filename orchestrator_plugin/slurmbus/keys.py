"""Signing keys and the agents' bus keys: listed, trusted, replaced, revoked."""

from __future__ import annotations

import time

from slurmbus.client import SiteClient
from slurmbus.home import Home, SiteProfile
from slurmbus.site import submitter
from slurmbus_protocol.embedded import new_user_seed, public_key
from slurmbus_protocol.messages import AskKeys, RevokeKey, SiteKey, SiteKeys, TrustKey
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.signing import Signer

VALID_FOR = 300.0
"""Seconds: these are answered at once, or asked again by a person."""


def known(client: SiteClient) -> tuple[SiteKey, ...]:
    """Give the keys that a site's agent knows; SiteUnreachable when none answers."""
    return client.ask("keys", AskKeys(), SiteKeys).keys


def trust(client: SiteClient, key: str, name: str, *, succeeds: bool = False) -> tuple[SiteKey, ...]:
    """Let a site's agent accept another key; with ``succeeds`` in this client's place.

    Raises:
        SiteUnreachable: no agent answers, so nothing is changed, as far as is known.
        NotAllowed: the key is over, or this client's own isn't trusted.
    """
    wish = TrustKey(
        site=client.site,
        expires_at=time.time() + VALID_FOR,
        submitter=submitter(),
        key=key,
        name=name,
        succeeds=succeeds,
    )
    return client.ask("trust-key", wish, SiteKeys, signed=True).keys


def revoke(client: SiteClient, key: str) -> tuple[SiteKey, ...]:
    """Let a site's agent accept a key never again, nor those that it brought in.

    Raises:
        SiteUnreachable: no agent answers: revoke it by a login.
        NotAllowed: it is this client's own.
    """
    wish = RevokeKey(site=client.site, expires_at=time.time() + VALID_FOR, submitter=submitter(), key=key)
    return client.ask("revoke-key", wish, SiteKeys, signed=True).keys


def revoke_by_login(home: Home, site: str, key: str) -> SiteProfile:
    """Note a revocation in a site's bundle, which the next login brings there."""
    profile = home.site(site)
    kept = tuple(pin for pin in profile.trusted if pin.key != key)
    return home.change_site(site, trusted=kept, revoked=tuple(dict.fromkeys((*profile.revoked, key))))


def pin(home: Home, site: str, key: PinnedKey) -> SiteProfile:
    """Note a trusted key in a site's bundle, which the next login brings there."""
    profile = home.site(site)
    return home.change_site(site, trusted=(*(one for one in profile.trusted if one.key != key.key), key))


def rotate(home: Home, client: SiteClient) -> str:
    """Make a new signing key for a site, have the old one say so to its agent, and use it from now on.

    Whatever runs with the old key has a day to notice; jobs pass on to the new one.

    Returns:
        The new public key.

    Raises:
        SiteUnreachable: no agent answers: nothing is changed, and a login can do it.
        NotAllowed: the agent doesn't trust the old key.
    """
    signer = Signer.generate()
    trust(client, signer.public, submitter(), succeeds=True)
    take(home, client.site, signer)
    return signer.public


def take(home: Home, site: str, signer: Signer) -> SiteProfile:
    """Use another signing key for a site from now on; its bundle says which one it succeeds."""
    profile = home.site(site)
    old = Signer.load(home.path / profile.signing_key).public
    path = home.path / f"client-{signer.public[:16]}.key"
    signer.save(path)
    pinned = PinnedKey(name=submitter(), key=signer.public, succeeds=old)
    return home.change_site(site, signing_key=path.relative_to(home.path), trusted=(*profile.trusted, pinned))


def rotate_agent(home: Home, site: str) -> SiteProfile:
    """Make a new bus key for a site's agent, which the next login brings there.

    This home's server knows both until :func:`finish_agent`; a team's server has to be told.
    """
    profile = home.site(site)
    seed = new_user_seed()
    retiring = profile.retiring_nkey or profile.agent_nkey  # an unfinished rotation keeps what the agent may still use
    return home.change_site(site, nkey_seed=seed, agent_nkey=public_key(seed), retiring_nkey=retiring)


def finish_agent(home: Home, site: str) -> SiteProfile:
    """Let the bus forget the agent's former key."""
    return home.change_site(site, retiring_nkey=None)
