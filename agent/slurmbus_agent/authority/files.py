"""Where the files lie that say what an agent may do, and how they are read."""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from slurmbus_agent.authority.policy import Policy
from slurmbus_agent.config import settings_path
from slurmbus_protocol.errors import InvalidSetting

SITE_FOLDER = Path("/etc/slurmbus")
"""Of the centre's staff; only root can write there."""
LARGEST = 256 * 1024
"""Bytes of such a file; anything larger is a mistake or an attack."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ROOT = 0


@dataclass(frozen=True)
class AuthorityFiles:
    """The files of one site's agent.

    Args:
        site: the site.
        bundle: the agent's configuration; the user's own files lie beside it.
        spool: the agent's spool.
        site_folder: where the centre's staff keep theirs.
        site_owner: the user whose files count there.
    """

    site: str
    bundle: Path
    spool: Path
    site_folder: Path = SITE_FOLDER
    site_owner: int = _ROOT

    @property
    def settings(self) -> Path:
        """What the user has set, which counts more than the bundle."""
        return settings_path(self.bundle, self.site)

    @property
    def policy(self) -> Path:
        """The user's policy."""
        return self.bundle.parent / f"{self.site}.policy.toml"

    @property
    def site_policy(self) -> Path:
        """The policy of the centre, which stands above."""
        return self.site_folder / "policy.toml"

    @property
    def grant(self) -> Path:
        """What the last login brought."""
        return self.bundle.parent / f"{self.site}.grant"

    @property
    def keys(self) -> Path:
        """The changes of keys that came over the bus."""
        return self.bundle.parent / f"{self.site}.keys"

    @property
    def stops(self) -> tuple[Path, ...]:
        """The files whose mere presence ends the agent."""
        return (self.site_folder / "stop", self.bundle.parent / f"{self.site}.stop", self.spool / "stop")

    def state(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Give something that changes whenever one of the files does; a few stat calls."""
        paths = (self.bundle, self.settings, self.policy, self.site_policy, self.grant, self.keys)
        return tuple(_state(path) for path in paths)

    def stopped_by(self) -> Path | None:
        """Give the stop file that is there, if any."""
        return next((path for path in self.stops if os.path.lexists(path)), None)

    def read_policies(self) -> dict[str, Policy]:
        """Give the policies that there are, by the words that name them.

        Raises:
            InvalidSetting: one of them can't be used; that is never the same as none.
        """
        policies: dict[str, Policy] = {}
        if (content := read_private(self.policy)) is not None:
            policies[f"the policy {self.policy}"] = _parse(self.policy, content)
        if (content := read_site_file(self.site_policy, self.site_owner)) is not None:
            policies[f"this site's policy {self.site_policy}"] = _parse(self.site_policy, content)
        return policies


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_size  # also whose it is, and who may write it, counts


def read_private(path: Path) -> bytes | None:
    """Read a file that others can't write; None when it isn't there.

    Raises:
        InvalidSetting: it belongs to somebody else, others can write it, or it can't be read.
    """
    return _read(path, (os.getuid(), _ROOT), f"chmod 600 {path}")


def read_site_file(path: Path, owner: int) -> bytes | None:
    """Read a file of the centre's; None when it isn't there.

    Raises:
        InvalidSetting: it or its folder isn't the owner's alone.
    """
    content = _read(path, (owner,), f"as root: chown root {path}; chmod 644 {path}")
    if content is not None:
        folder = path.parent.stat()
        if folder.st_uid != owner or folder.st_mode & _OTHERS_WRITE:
            raise InvalidSetting(f"{path.parent} can be written by others", hint=f"as root: chmod 755 {path.parent}")
    return content


def _read(path: Path, owners: tuple[int, ...], hint: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidSetting(f"{path} can't be read: {error.strerror}", hint=hint) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidSetting(f"{path} is no file", hint="remove it")
        if status.st_uid not in owners:
            raise InvalidSetting(f"{path} belongs to another user ({status.st_uid})", hint=hint)
        if status.st_mode & _OTHERS_WRITE:
            raise InvalidSetting(f"{path} can be written by others", hint=hint)
        if status.st_size > LARGEST:
            raise InvalidSetting(f"{path} is larger than {LARGEST:,} bytes", hint="it can't be meant")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST)
    except OSError as error:
        raise InvalidSetting(f"{path} can't be read: {error.strerror}", hint=hint) from error
    finally:
        os.close(descriptor)


def _parse(path: Path, content: bytes) -> Policy:
    try:
        policy = msgspec.convert(tomllib.loads(content.decode()), Policy)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise InvalidSetting(
            f"the policy {path} can't be used: {error}", hint="mend it; without it nothing is served"
        ) from error
    problem = policy.problem()
    if problem is not None:
        raise InvalidSetting(
            f"the policy {path} can't be used: {problem}", hint="mend it; without it nothing is served"
        )
    return policy
