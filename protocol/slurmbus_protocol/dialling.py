"""Opening a connection to the bus: over TCP, a Unix socket or WebSocket, with TLS that nobody can talk us out of.

nats-py encrypts only when the server's first words ask for it, and those words aren't authenticated: whoever sits in
between could leave that out. Here a connection that shall be encrypted says nothing before it is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLContext, create_default_context
from typing import Self
from urllib.parse import ParseResult, urlsplit

from nats.aio.transport import Transport

from slurmbus_protocol.errors import InvalidSetting

SCHEMES = ("nats", "tls", "ws", "wss", "nats+unix")
_ENCRYPTED = {"tls", "wss"}
_WEB = {"ws": 80, "wss": 443}
_PORT = 4222
CLOSE_WITHIN = 0.3
"""Seconds for the other side to say goodbye."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a bus is: ``nats://``, ``tls://``, ``ws://``, ``wss://`` with host and port, or ``nats+unix:///path``."""

    scheme: str
    host: str
    port: int
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address; InvalidSetting, which names it, when it is none."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InvalidSetting(f"{text!r} is no address of a bus: {error}") from error
        if parts.scheme not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise InvalidSetting(f"{text!r} is no address of a bus", hint=f"it starts with one of {known}")
        if parts.username is not None or parts.query or parts.fragment:
            raise InvalidSetting(f"{parts.scheme}://…: an address has a host and a port only")
        if parts.scheme == "nats+unix":
            if parts.netloc or not parts.path.startswith("/"):
                raise InvalidSetting(f"{text!r} has no absolute path", hint="nats+unix:///path/of/socket")
            return cls(parts.scheme, "localhost", 0, Path(parts.path))
        if not parts.hostname or parts.path.strip("/"):
            raise InvalidSetting(f"{text!r} is no address of a bus", hint=f"e.g. {parts.scheme}://host:{_PORT}")
        return cls(parts.scheme, parts.hostname, port or _WEB.get(parts.scheme, _PORT))

    @property
    def encrypted(self) -> bool:
        """True when the address itself asks for TLS."""
        return self.scheme in _ENCRYPTED

    @property
    def local(self) -> bool:
        """True when nothing leaves this machine: a Unix socket, or the loopback."""
        return self.path is not None or is_loopback(self.host)

    @property
    def web(self) -> bool:
        """True for WebSocket."""
        return self.scheme in _WEB

    @property
    def url(self) -> str:
        """The address as nats-py takes it; it only reads the host's name from it."""
        return f"nats://[{self.host}]:{self.port}" if ":" in self.host else f"nats://{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine itself; a name in general isn't, whatever it leads to."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def in_plain(text: str, *, pinned: bool) -> bool:
    """Tell whether what goes to an address could be read and changed on the way.

    Args:
        text: the address.
        pinned: whether the authority of the bus's certificate is known: then ``nats://`` is encrypted, too.

    Raises:
        InvalidSetting: it is no address.
    """
    address = Address.parse(text)
    return not (address.encrypted or address.local or (pinned and not address.web))


def check_encrypted(addresses: Iterable[str], *, pinned: bool, allow_plain: bool) -> None:
    """Look whether a bus may be reached like this.

    Args:
        addresses: of the bus.
        pinned: whether the authority of its certificate is known.
        allow_plain: somebody said that the way there is safe without TLS.

    Raises:
        InvalidSetting: an address is none, or isn't encrypted and nobody has allowed that.
    """
    for text in addresses:
        if in_plain(text, pinned=pinned) and not allow_plain:
            raise InvalidSetting(
                f"{text} isn't encrypted: whoever is on the way can read everything and answer in the bus's place",
                hint="use tls:// or wss://, or name the certificate's authority (--ca); where the network itself is "
                "safe, --allow-plain (allow_plain = true in the file, SLURMBUS_ALLOW_PLAIN=1 beside SLURMBUS_URL)",
            )


@dataclass(frozen=True, slots=True)
class Tls:
    """With what a connection is encrypted, and the name that the server must prove; None is the address's host."""

    context: SSLContext
    name: str | None = None


async def dial(address: Address, tls: Tls | None) -> Transport:
    """Open a connection for nats-py, which greets the server on it.

    Args:
        address: where to.
        tls: None leaves it to the server whether the connection is encrypted, as nats-py does.

    Raises:
        OSError: nobody is there, it is no bus, or TLS failed.
        InvalidSetting: this address can't be encrypted.
    """
    if address.web:
        from slurmbus_protocol import websocket  # noqa: PLC0415 - 6 MB that only few connections need

        return await websocket.dial(address, tls)
    if address.path is not None:
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        greeting = await reader.readline()
        context = _context(greeting, tls)
        if context is not None:
            await writer.start_tls(context, server_hostname=(tls.name if tls else None) or address.host)
    except BaseException:
        writer.close()
        raise
    return StreamTransport(reader, writer, greeting)


def _context(greeting: bytes, tls: Tls | None) -> SSLContext | None:
    """Decide by the server's first words whether the connection is encrypted; ConnectionError when it can't be."""
    kind, _, words = greeting.partition(b" ")
    try:
        info = json.loads(words)
    except ValueError:
        info = None
    if kind != b"INFO" or not isinstance(info, dict):
        raise ConnectionError("this is no NATS server" if greeting else "the connection was closed at once")
    needed = bool(info.get("tls_required"))
    if tls is None:
        return create_default_context() if needed else None
    if not needed and not info.get("tls_available"):
        raise ConnectionError("the server offers no TLS: this isn't our bus, or it is set up without")
    return tls.context


class StreamTransport(Transport):
    """A stream that is open already and, if it shall be, encrypted; the server's greeting was read from it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeting: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._greeting = greeting

    async def connect(self, uri: object, buffer_size: int, connect_timeout: int) -> None:
        """Do nothing: it is connected."""

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Do nothing: it is encrypted."""

    def write(self, payload: bytes) -> None:
        """Write."""
        self._writer.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Write several pieces."""
        self._writer.writelines(payload)

    async def read(self, buffer_size: int) -> bytes:
        """Read what is there."""
        return await self._reader.read(buffer_size)

    async def readline(self) -> bytes:
        """Read one line, the greeting first."""
        line, self._greeting = self._greeting, b""
        return line or await self._reader.readline()

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._writer.drain()

    async def wait_closed(self) -> None:
        """Wait until it is closed; TLS asks the other side to agree, which one that is gone never does."""
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await self._writer.wait_closed()
        finally:
            self._writer.transport.abort()

    def close(self) -> None:
        """Close it."""
        self._writer.close()

    def at_eof(self) -> bool:
        """Tell whether the other side has closed it."""
        return self._reader.at_eof()

    def __bool__(self) -> bool:
        """Say that it is connected."""
        return True
