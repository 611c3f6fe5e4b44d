"""Keys that a login has pinned, with what is known of each."""

from __future__ import annotations

from typing import Annotated

import msgspec

PublicKeyHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
KeyName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class PinnedKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A public key whose requests a site accepts."""

    name: KeyName
    """For people: ``alice@laptop``, ``team-production``."""
    key: PublicKeyHex
    succeeds: PublicKeyHex | None = None
    """The key in whose place this one stands: it may control that one's jobs."""
