"""A server's keys in a folder: an authority of its own and a certificate that is renewed in time.

Clients and agents pin the authority, so a renewed certificate changes nothing for them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.private_files import write_private

TLS_NAME = "slurmbus-bus"
"""The name in every certificate: clients that pin the authority ask for it, whatever address or tunnel they use."""
VALID_DAYS = 365
RENEW_DAYS = 120
"""A server that isn't running for a season still starts with a valid certificate, and renews it then."""
_DAY = 86_400


class ServerTls:
    """The folder ``tls``: ``ca.pem``, ``ca.key``, ``server.pem`` with the certificate and its key, ``server.json``."""

    def __init__(self, folder: Path, names: Sequence[str] = ()) -> None:
        self._folder = folder
        self._names = tuple(dict.fromkeys((TLS_NAME, "localhost", "127.0.0.1", "::1", socket.gethostname(), *names)))
        self.authority = folder / "ca.pem"
        """What clients pin."""
        self.certificate = folder / "server.pem"
        """The server's certificate and its key."""
        self._key = folder / "ca.key"
        self._facts = folder / "server.json"

    def ensure(self, now: float | None = None) -> bool:
        """Make what is missing or about to expire; True when the certificate is a new one.

        Raises:
            InvalidSetting: the folder can't be written, or holds something else.
        """
        now = time.time() if now is None else now
        try:
            if self.authority.exists() and self.certificate.exists() and self._expires() - now > RENEW_DAYS * _DAY:
                return False
            self._make(now)
        except OSError as error:
            raise InvalidSetting(f"{self._folder} can't be used: {error.strerror}") from error
        return True

    def pinned(self) -> str:
        """Give the authority's certificate as PEM; InvalidSetting when there is none."""
        try:
            return self.authority.read_text()
        except OSError as error:
            raise InvalidSetting(f"{self.authority} can't be read: {error.strerror}") from error

    def _expires(self) -> float:
        try:
            return float(json.loads(self._facts.read_text())["expires"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def _make(self, now: float) -> None:
        from slurmbus_protocol import certificates  # noqa: PLC0415 - 11 MB, and needed once in months

        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.authority.exists():
            made = certificates.make_authority(f"slurmbus {os.urandom(4).hex()}")
            write_private(self._key, made.key.encode())
            write_private(self.authority, made.pem.encode())  # last: with it the authority is complete
        authority = certificates.Certificate(self.authority.read_text(), self._key.read_text())
        server = certificates.issue(authority, self._names, VALID_DAYS)
        write_private(self.certificate, (server.pem + server.key).encode())
        write_private(self._facts, json.dumps({"expires": now + VALID_DAYS * _DAY}).encode())
