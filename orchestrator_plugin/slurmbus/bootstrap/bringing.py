"""What a login brings to a site: the agent's bundle, the policy that its user wrote here, and a fresh grant.

What its user has set *there* stays: ``<site>.settings.toml`` beside the bundle is written once at most, with what stood
in a bundle that was edited by hand.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from slurmbus import authority
from slurmbus.bootstrap import journal
from slurmbus.bootstrap.journal import Journal
from slurmbus.bootstrap.session import Remote
from slurmbus.errors import SiteUnfit
from slurmbus.home import Home
from slurmbus_protocol import grants

SETTINGS = ("watch_interval", "array_size", "limits", "retention", "environments", "log_format")
"""What a user may set at the site: the fields of the agent's ``AgentSettings``."""

Toml = Mapping[str, Any]


@dataclass
class Brought:
    """What came of it."""

    config: str
    """The path of the bundle there."""
    hashes: dict[str, str]
    changes: list[str] = field(default_factory=list)
    """What was done, in words, besides the renewed authority."""
    other_bundle: bool = False
    """An agent that runs may not have taken this bundle yet."""


def bring(
    remote: Remote,
    home: Home,
    site: str,
    folder: str,
    before: Journal | None,
    end_agent: Callable[[Toml, Toml], None],
) -> Brought:
    """Bring what isn't there yet, and a fresh grant.

    Args:
        remote: the session.
        home: whose site.
        site: its name.
        folder: for all of it, on the site.
        before: what stands there.
        end_agent: called with the old bundle and the new one while the old one is still there: may end an agent that
            couldn't take the new one while it runs. When it raises something, nothing has been changed.

    Raises:
        SiteUnfit: a file there can't be written, or can't be read where settings of the user's may stand in it.
    """
    files = authority.files(home, site)
    known = before.brought if before is not None else {}
    bundle, policy = home.bundle_path(site).name, home.policy_path(site).name
    brought = Brought(f"{folder}/{bundle}", authority.hashes(files))
    brought.other_bundle = known.get(bundle) != brought.hashes[bundle]
    remote.call("folder", path=folder)
    old = {name: remote.read(f"{folder}/{name}") for name in files}
    new = [name for name in files if old[name] != files[name]]
    gone = policy in known and policy not in files
    was = old[bundle]
    old_bundle = _read(was, brought.config) if bundle in new and was is not None else {}
    if old_bundle:
        end_agent(old_bundle, _read(files[bundle], bundle))
    if before is not None and (new or gone):
        # However this ends, the next run can't go by what stood there.
        journal.write(home, msgspec.structs.replace(before, brought={}))
    if old_bundle:
        _keep_settings(remote, f"{folder}/{site}.settings.toml", old_bundle, _read(files[bundle], bundle), brought)
    for name in new:
        remote.write(f"{folder}/{name}", files[name])
    if gone:
        remote.call("remove", path=f"{folder}/{policy}")
        brought.changes.append(f"{policy} was removed from the site")
    grant = authority.issue(home, site)
    remote.write(f"{folder}/{home.grant_path(site).name}", grants.write(grant))
    authority.keep(home, site, grant)  # not earlier: what isn't there gives no authority
    if new:
        brought.changes.append(f"{' and '.join(new)} went to the site")
    return brought


def kept_apart(old: Toml, new: Toml, settings: Toml) -> dict[str, Any]:
    """Give the user's settings with those that a new bundle would take away with the old one (pure).

    Args:
        old: a bundle that may have been edited by hand.
        new: the one in its place.
        settings: what the user has set already, which counts more.
    """
    kept = dict(settings)
    for name in SETTINGS:
        if name not in old:
            continue
        if not isinstance(old[name], dict):
            if name not in new:
                kept.setdefault(name, old[name])
            continue
        entries = {entry: value for entry, value in old[name].items() if entry not in new.get(name, {})}
        if entries:
            kept[name] = {**entries, **kept.get(name, {})}
    return kept


def _keep_settings(remote: Remote, path: str, old: Toml, new: Toml, brought: Brought) -> None:
    found = remote.read(path)
    settings = _read(found, path) if found is not None else {}
    kept = kept_apart(old, new, settings)
    if kept != settings:
        remote.write(path, msgspec.toml.encode(kept))
        brought.changes.append(f"what was set by hand went to {path}, which nobody else writes")


def _read(content: bytes, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteUnfit(
            f"{path} can't be read: {error}", hint="mend it there, or remove it and lose what was set in it by hand"
        ) from error
