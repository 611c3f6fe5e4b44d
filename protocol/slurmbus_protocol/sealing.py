"""Secret environment values, sealed so that only one site's agent can read them.

Sealed is by X25519 and XSalsa20-Poly1305 with a key of the moment (libsodium's sealed box). What is inside names site,
job and signer, so that nobody can put somebody else's sealed values into a request of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from slurmbus_protocol.errors import InvalidSetting, NotAllowed
from slurmbus_protocol.messages import Sealed

MAX_BYTES = 128 * 1024
"""Of names and values together. Linux takes no environment variable above 128 KiB: MAX_ARG_STRLEN of execve(2)."""


class SecretUnreadable(NotAllowed):
    """The secret values can't be read by this site's agent."""

    code = "secret-unreadable"
    default_hint = "take the agent's present key with 'slurmbus up SITE' (or 'slurmbus sites add'), and submit again"


class _Inside(msgspec.Struct, frozen=True, kw_only=True):
    site: str
    key: str
    signer: str
    env: dict[str, str]


def new_seal_key() -> str:
    """Make a private key, as 64 hex digits."""
    return PrivateKey.generate().encode().hex()


def seal_public(private: str) -> str:
    """Give the public part of a private key; InvalidSetting when it isn't one."""
    return _private(private).public_key.encode().hex()


def seal(env: Mapping[str, str], public: str, *, site: str, key: str, signer: str) -> Sealed:
    """Seal values for the job with this key, in a request that this signer signs.

    Raises:
        InvalidSetting: they are too many bytes, or the public key isn't one.
    """
    size = sum(len(name) + len(value) for name, value in env.items())
    if size > MAX_BYTES:
        raise InvalidSetting(
            f"the secret values are {size:,} bytes, more than {MAX_BYTES:,}", hint="ship them as files"
        )
    try:
        box = SealedBox(PublicKey(bytes.fromhex(public)))
    except (ValueError, TypeError, CryptoError) as error:
        raise InvalidSetting("the agent's seal key isn't 64 hex digits") from error
    inside = msgspec.msgpack.encode(_Inside(site=site, key=key, signer=signer, env=dict(env)))
    return Sealed(to=public, names=tuple(sorted(env)), data=box.encrypt(inside))


def unseal(sealed: Sealed, private: str | None, *, site: str, key: str, signer: str) -> dict[str, str]:
    """Give the values; SecretUnreadable when they were sealed to another key, or for another job or signer."""
    if private is None:
        raise SecretUnreadable("the agent has no key for sealed values: its bundle is older than they are")
    if sealed.to != seal_public(private):
        raise SecretUnreadable("the secret values are sealed to another key than the agent's: it was replaced")
    try:
        inside = msgspec.msgpack.decode(SealedBox(_private(private)).decrypt(sealed.data), type=_Inside)
    except (CryptoError, msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise SecretUnreadable("the secret values are damaged") from error
    if (inside.site, inside.key, inside.signer) != (site, key, signer):
        raise SecretUnreadable("the secret values were sealed for another job or by somebody else", hint="")
    return inside.env


def _private(private: str) -> PrivateKey:
    try:
        return PrivateKey(bytes.fromhex(private))
    except (ValueError, TypeError, CryptoError) as error:
        raise InvalidSetting("seal_key isn't 64 hex digits") from error
