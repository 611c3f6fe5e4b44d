"""What a login brings to a site: the agent's bundle, a fresh grant, and the policy that the user wrote for it."""

from __future__ import annotations

import getpass
import platform
import time

import msgspec

from slurmbus.home import Home
from slurmbus_protocol import grants
from slurmbus_protocol.grants import DAYS, Grant
from slurmbus_protocol.private_files import write_private
from slurmbus_protocol.signing import Signer

REMOTE_FOLDER = ".config/slurmbus"
"""Where these files go, relative to the user's home on the login node; each with mode 0600."""


def renew(home: Home, site: str, days: float = DAYS) -> Grant:
    """Make a grant for a site that begins now, and keep it in the home.

    Raises:
        UnknownSite: the home has no such site.
        InvalidSetting: the signing key can't be used.
    """
    profile = home.site(site)
    signer = Signer.load(home.path / profile.signing_key)
    grant = grants.issue(signer, site, f"{getpass.getuser()}@{platform.node()}", days)
    write_private(home.grant_path(site), grants.write(grant))
    return grant


def login_files(home: Home, site: str, days: float = DAYS) -> dict[str, bytes]:
    """Renew a site's authority and give the files that a login writes to :data:`REMOTE_FOLDER`, by their names.

    A running agent takes all of them without a restart: the grant, the policy and the keys as they are; a changed
    bundle makes it begin anew by itself, while its jobs go on.
    """
    renew(home, site, days)
    paths = (home.bundle_path(site), home.policy_path(site), home.grant_path(site))
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def current(home: Home, site: str) -> Grant | None:
    """Give the grant that the last login brought; None when there was none, or its file can't be read."""
    try:
        return msgspec.json.decode(home.grant_path(site).read_bytes(), type=Grant)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def is_fresh(home: Home, site: str) -> bool:
    """Tell whether more than half of a site's authority is left."""
    grant = current(home, site)
    return grant is not None and time.time() < (grant.issued_at + grant.expires_at) / 2
