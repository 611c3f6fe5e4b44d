"""What ``slurmbus up`` did at a site, kept in the home: what a second run compares with, and ``down`` undoes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from slurmbus.bootstrap.login import Login
from slurmbus.home import Home
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.private_files import write_private
from slurmbus_protocol.subjects import check_token


class Journal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands at a site."""

    site: str
    host: str
    """The login node's own name."""
    install_folder: str
    version: str
    """Of the installation."""
    source: str = ""
    """Hash of the agent's own modules, which says whether this machine has others now."""
    config: str
    """The path of the agent's configuration there."""
    supervisor: str
    way: str
    servers: tuple[str, ...]
    login: Login | None = None
    """With which settings it was done."""
    brought: dict[str, str] = {}
    """The hashes of the files that were brought, by their names; none while it isn't sure what stands there."""
    environment: dict[str, str] = {}
    at: float = 0.0


def path(home: Home, site: str) -> Path:
    """Where it lies."""
    return home.path / "up" / f"{check_token(site, 'site')}.json"


def read(home: Home, site: str) -> Journal | None:
    """Give what was done; None when nothing was.

    Raises:
        InvalidSetting: the file can't be used.
    """
    try:
        return msgspec.json.decode(path(home, site).read_bytes(), type=Journal)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise InvalidSetting(
            f"{path(home, site)} can't be used: {error}", hint="remove it, and run it again"
        ) from error


def write(home: Home, journal: Journal) -> None:
    """Keep what was done."""
    target = path(home, journal.site)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(target, msgspec.json.encode(journal))


def forget(home: Home, site: str) -> None:
    """Nothing stands there any more."""
    path(home, site).unlink(missing_ok=True)
