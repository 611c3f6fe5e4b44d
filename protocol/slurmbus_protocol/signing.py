"""Ed25519 signatures of requests and controls.

A signature covers a domain, the subject and the body, so that a request can't be moved to another site, key or kind
of message. Keys are 32-byte seeds in files that only their owner can read. Source of the scheme: RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from slurmbus_protocol.errors import BadSignature, InvalidSetting

KEY_HEADER = "Slurmbus-Key"
SIGNATURE_HEADER = "Slurmbus-Signature"
_DOMAIN = b"slurmbus.v1.request"


class Signer:
    """Signs requests with one client's key."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public = self._key.verify_key.encode().hex()

    @classmethod
    def generate(cls) -> Signer:
        """Make a new key."""
        return cls(os.urandom(32))

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read a key from its file; InvalidSetting when it isn't one."""
        try:
            return cls(bytes.fromhex(path.read_text().strip()))
        except (OSError, ValueError) as error:
            raise InvalidSetting(
                f"signing key {path} can't be used: {error}", hint="make one with 'slurmbus sites add NAME'"
            ) from error

    def save(self, path: Path) -> None:
        """Write the key to a file that only its owner can read; never over another key."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._key.encode().hex() + "\n")

    def headers(self, subject: str, body: bytes) -> dict[str, str]:
        """Give the two headers that go with a request."""
        return {KEY_HEADER: self.public, SIGNATURE_HEADER: self.sign(_DOMAIN, subject.encode() + b"\0" + body)}

    def sign(self, domain: bytes, data: bytes) -> str:
        """Sign something; the domain keeps it from being taken for something else."""
        return base64.b64encode(self._key.sign(domain + b"\0" + data).signature).decode()


class TrustedKeys:
    """The public keys (64 hex digits each) whose requests a site accepts."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys: dict[str, VerifyKey] = {}
        for key in keys:
            try:
                self._keys[key] = VerifyKey(bytes.fromhex(key))
            except (ValueError, TypeError) as error:
                raise InvalidSetting(f"trusted key {key!r} isn't 64 hex digits") from error

    def verify(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> str:
        """Return the public key that signed this, or raise BadSignature."""
        name = (headers or {}).get(KEY_HEADER, "")
        self.check(name, _DOMAIN, subject.encode() + b"\0" + body, (headers or {}).get(SIGNATURE_HEADER, ""))
        return name

    def check(self, name: str, domain: bytes, data: bytes, signature: str) -> None:
        """Raise BadSignature unless this trusted key has signed this data for this domain."""
        key = self._keys.get(name)
        if key is None:
            raise BadSignature(f"signed by the unknown key {name[:16]!r}…" if name else "the request isn't signed")
        try:
            key.verify(domain + b"\0" + data, base64.b64decode(signature, validate=True))
        except (BadSignatureError, binascii.Error, ValueError) as error:
            raise BadSignature("the signature doesn't fit the request", hint="") from error
