"""What a login brings to a site: the agent's bundle, a fresh grant, and the policy that the user wrote for it."""

from __future__ import annotations

import getpass
import hashlib
import platform
import time
from collections.abc import Mapping

import msgspec

from slurmbus.home import Home
from slurmbus_protocol import grants
from slurmbus_protocol.grants import DAYS, Grant
from slurmbus_protocol.private_files import write_private
from slurmbus_protocol.signing import Signer

REMOTE_FOLDER = ".config/slurmbus"
"""Where these files go, relative to the user's home on the login node; each with mode 0600."""


def files(home: Home, site: str) -> dict[str, bytes]:
    """Give the files that a login writes to :data:`REMOTE_FOLDER` besides the grant, by their names.

    A running agent takes a policy as it is; a changed bundle makes it begin anew by itself, while its jobs go on.
    """
    paths = (home.bundle_path(site), home.policy_path(site))
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def hashes(brought: Mapping[str, bytes]) -> dict[str, str]:
    """Give what tells whether the same files stand at a site."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in brought.items()}


def issue(home: Home, site: str, days: float = DAYS) -> Grant:
    """Make a grant for a site that begins now. It has to be written there, and kept here once it is there.

    Raises:
        UnknownSite: the home has no such site.
        InvalidSetting: the signing key can't be used.
    """
    profile = home.site(site)
    signer = Signer.load(home.path / profile.signing_key)
    return grants.issue(signer, site, f"{getpass.getuser()}@{platform.node()}", days)


def keep(home: Home, site: str, grant: Grant) -> None:
    """Remember which grant a login has brought."""
    write_private(home.grant_path(site), grants.write(grant))


def current(home: Home, site: str) -> Grant | None:
    """Give the grant that the last login brought; None when there was none, or its file can't be read."""
    try:
        return msgspec.json.decode(home.grant_path(site).read_bytes(), type=Grant)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def is_fresh(home: Home, site: str, until: float | None) -> bool:
    """Tell whether more than half of a site's authority is left.

    Args:
        home: whose site.
        site: its name.
        until: what the agent says, whose policies may give less than the login did; None when it names no end.
    """
    grant = current(home, site)
    if grant is None:
        return False
    end = grant.expires_at if until is None else min(until, grant.expires_at)
    return time.time() < (grant.issued_at + end) / 2
