"""Grants: the signed word of a login that an agent may take requests until a certain time.

A grant is a small JSON file beside the agent's configuration. It takes two to make one that counts: a key that the
agent trusts has to have signed it, and somebody has to have written it where the agent runs, which takes a login.
"""

from __future__ import annotations

import time

import msgspec

from slurmbus_protocol.errors import InvalidSetting, NotAllowed
from slurmbus_protocol.messages import Token
from slurmbus_protocol.signing import Signer, TrustedKeys

DAYS = 7.0
"""How long a login gives authority when nobody says otherwise."""
DAY = 86400.0
CLOCKS_APART = 900.0
"""Seconds by which the clock of whoever signed may be ahead of the agent's."""
_DOMAIN = b"slurmbus.v1.grant"


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Who let the agent of a site take requests, from when, and until when (seconds since 1970)."""

    site: Token
    issued_at: float
    expires_at: float
    issuer: str
    """For people: ``alice@laptop``."""
    key: str
    """The public key that signed it."""
    signature: str = ""

    def covered(self) -> bytes:
        """Give the bytes that are signed."""
        return msgspec.json.encode(msgspec.structs.replace(self, signature=""))


class GrantNotAccepted(NotAllowed):
    """The grant of this site doesn't count."""

    code = "grant-not-accepted"
    default_hint = "log in and renew it: slurmbus up SITE"


def issue(signer: Signer, site: str, issuer: str, days: float = DAYS, now: float | None = None) -> Grant:
    """Make a grant that begins now.

    Raises:
        InvalidSetting: it would end before it begins.
    """
    if not 0 < days < float("inf"):
        raise InvalidSetting(f"a grant of {days} days can't be used", hint=f"e.g. {DAYS:g}")
    begin = time.time() if now is None else now
    grant = Grant(site=site, issued_at=begin, expires_at=begin + days * DAY, issuer=issuer, key=signer.public)
    return msgspec.structs.replace(grant, signature=signer.sign(_DOMAIN, grant.covered()))


def write(grant: Grant) -> bytes:
    """Give the content of the file."""
    return msgspec.json.format(msgspec.json.encode(grant)) + b"\n"


def read(content: bytes, site: str, keys: TrustedKeys, now: float) -> Grant:
    """Read and check the content of a grant's file. That it may have ended is left to the caller.

    Raises:
        GrantNotAccepted: it is no grant, not for this site, from the future, or not signed by a trusted key.
    """
    try:
        grant = msgspec.json.decode(content, type=Grant)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GrantNotAccepted(f"the grant can't be read: {error}") from error
    if grant.site != site:
        raise GrantNotAccepted(f"the grant is for site {grant.site!r}, not {site!r}")
    if grant.issued_at > now + CLOCKS_APART:
        raise GrantNotAccepted(
            "the grant begins in the future", hint="set the clock of the machine that 'slurmbus up' runs on"
        )
    keys.check(grant.key, _DOMAIN, grant.covered(), grant.signature)
    return grant
