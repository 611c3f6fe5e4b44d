"""The keys whose requests a site accepts, how they came here, and which one stands in the place of which. Pure.

Keys come by a login (they are pinned in the bundle) or over the bus, signed by a key that is trusted. A key that was
revoked, or that another one has replaced, never comes back, whoever brings it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from slurmbus_protocol.errors import BadSignature, NotAllowed
from slurmbus_protocol.messages import SiteKey
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.signing import KEY_HEADER, TrustedKeys

RETIRES_AFTER = 86400.0
"""Seconds for which a key that was replaced is still accepted: as long as requests are valid that it has signed."""
MOST_KEYS = 200
"""A site has a few; more would be an attack on the agent's memory."""


class KeyNotChanged(NotAllowed):
    """The keys of the site weren't changed."""

    code = "key-not-changed"


class Keyring:
    """The keys of one site at one moment; a change gives a new ring.

    Args:
        keys: all that are known, also those that are over, by public key.
    """

    def __init__(self, keys: Mapping[str, SiteKey]) -> None:
        self._keys = dict(keys)
        self._trusted = TrustedKeys(key for key, known in self._keys.items() if not known.revoked)

    @classmethod
    def of(
        cls,
        trusted: Iterable[str],
        pinned: Iterable[PinnedKey] = (),
        revoked: Iterable[str] = (),
        changes: Iterable[SiteKey] = (),
    ) -> Keyring:
        """Put a ring together.

        Args:
            trusted: bare keys that a login pinned.
            pinned: keys that a login pinned, with what is known of them.
            revoked: keys that a login revoked.
            changes: what came over the bus.
        """
        keys = {change.key: change for change in changes}
        by_login = [SiteKey(name=key[:16], key=key) for key in trusted]
        by_login += [SiteKey(name=pin.name, key=pin.key, succeeds=pin.succeeds or "") for pin in pinned]
        for key in by_login:
            known = keys.get(key.key)
            # What came over the bus keeps its end, but a login's word on where it came from is the stronger one.
            ends = {"retires_at": known.retires_at, "revoked": known.revoked} if known else {}
            succeeds = key.succeeds or (known.succeeds if known else "")
            keys[key.key] = msgspec.structs.replace(key, succeeds=succeeds, **ends)
        for over in revoked:
            known = keys.get(over, SiteKey(name=over[:16], key=over))
            keys[over] = msgspec.structs.replace(known, revoked=True)
        return cls(keys)

    @property
    def keys(self) -> tuple[SiteKey, ...]:
        """All that are known, also those that are over."""
        return tuple(self._keys.values())

    @property
    def changes(self) -> tuple[SiteKey, ...]:
        """What has to be kept because no login has said it: keys that came over the bus, and ends."""
        return tuple(key for key in self.keys if key.by or key.revoked or key.retires_at is not None)

    @property
    def signers_of_grants(self) -> TrustedKeys:
        """The keys whose grants count: a key that was replaced ends, but not what it has granted."""
        return self._trusted

    def verify(self, subject: str, body: bytes, headers: Mapping[str, str] | None, now: float) -> str:
        """Return the public key that signed this; BadSignature when it doesn't count (any more)."""
        name = (headers or {}).get(KEY_HEADER, "")
        known = self._keys.get(name)
        if known is not None and known.revoked:
            raise BadSignature(
                f"signed by the key {known.name!r}, which was revoked", hint="make a new one: slurmbus keys rotate"
            )
        if known is not None and not _counts(known, now):
            raise BadSignature(f"signed by the key {known.name!r}, which another one has replaced", hint="use that one")
        return self._trusted.verify(subject, body, headers)

    def may_control(self, signer: str, owner: str) -> bool:
        """Tell whether a key may control what the other one asked for: it is that one, or succeeds it."""
        seen: set[str] = set()
        key = signer
        while key and key not in seen:
            if key == owner:
                return True
            seen.add(key)
            key = self._keys[key].succeeds if key in self._keys else ""
        return False

    def trust(self, by: str, key: str, name: str, *, succeeds: bool, now: float) -> Keyring:
        """Bring in a key, on the word of one that counts; with ``succeeds`` in that one's place.

        Raises:
            KeyNotChanged: it was here and is over.
        """
        known = self._keys.get(key)
        if known is not None and not _counts(known, now):
            raise KeyNotChanged(
                f"the key {key[:16]}… was revoked or replaced and can't come back", hint="make a new one"
            )
        if known is None and len(self._keys) >= MOST_KEYS:
            raise KeyNotChanged(f"the site knows {MOST_KEYS} keys already", hint="remove some from its bundle")
        TrustedKeys([key])  # InvalidSetting when it isn't one
        ours = known or SiteKey(name=name, key=key, by=by)
        changed = {key: msgspec.structs.replace(ours, succeeds=by if succeeds and key != by else ours.succeeds)}
        if succeeds and key != by:
            old = self._keys[by]
            ends = now + RETIRES_AFTER if old.retires_at is None else old.retires_at
            changed[by] = msgspec.structs.replace(old, retires_at=ends)
        return Keyring({**self._keys, **changed})

    def revoke(self, by: str, key: str) -> Keyring:
        """End a key, and all that it brought in, but never the one on whose word that happens.

        Raises:
            KeyNotChanged: a key can't revoke itself, since nobody might be left.
        """
        if key == by:
            raise KeyNotChanged("a key can't revoke itself", hint="sign with another one, or log in")
        known = self._keys.get(key, SiteKey(name=key[:16], key=key))
        changed = {key: msgspec.structs.replace(known, revoked=True)}
        while more := [one for one in self.keys if one.by in changed and one.key not in changed and one.key != by]:
            changed |= {one.key: msgspec.structs.replace(one, revoked=True) for one in more}
        return Keyring({**self._keys, **changed})


def _counts(key: SiteKey, now: float) -> bool:
    return not key.revoked and (key.retires_at is None or now < key.retires_at)
