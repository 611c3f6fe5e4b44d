"""The bus over WebSocket, for networks that let nothing out but HTTPS.

nats-py's own way needs aiohttp, which every process that imports nats-py then carries (15 MB) whether it uses it or
not, and uses no proxy. Here HTTP proxies named in the environment are used.
"""

from __future__ import annotations

import asyncio
from ssl import SSLContext, SSLError
from typing import Any
from urllib.parse import ParseResult

from nats.aio.transport import Transport
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from slurmbus_protocol.dialling import CLOSE_WITHIN, Address, Tls
from slurmbus_protocol.errors import InvalidSetting


async def dial(address: Address, tls: Tls | None) -> Transport:
    """Open a WebSocket.

    Raises:
        OSError: nobody is there, the proxy refuses, or TLS failed.
        InvalidSetting: it would have to be encrypted and can't be.
    """
    host = f"[{address.host}]" if ":" in address.host else address.host
    if tls is None:
        return WebSocketTransport(await _connect(f"ws://{host}:{address.port}"))
    if address.scheme != "wss":
        raise InvalidSetting(f"ws://{host} isn't encrypted, and the bus has a certificate", hint="use wss://")
    name = tls.name or address.host
    return WebSocketTransport(
        await _connect(f"wss://{host}:{address.port}", context=tls.context, name=name),
    )


async def _connect(url: str, context: SSLContext | None = None, name: str | None = None) -> ClientConnection:
    encryption: dict[str, Any] = {"ssl": context, "server_hostname": name} if context else {}
    try:
        return await connect(
            url,
            compression=None,
            max_size=None,  # the server has a limit of its own
            max_queue=1,
            ping_interval=None,  # NATS has its own
            close_timeout=CLOSE_WITHIN,
            **encryption,
        )
    except SSLError:
        raise
    except WebSocketException as error:
        raise ConnectionError(f"no WebSocket: {error}") from error


class WebSocketTransport(Transport):
    """A WebSocket that is open already, read as the stream of bytes that NATS takes it for."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._read = bytearray()
        self._pending: list[bytes] = []
        self._ended = False
        self._closing: asyncio.Task[None] | None = None

    async def connect(self, uri: object, buffer_size: int, connect_timeout: int) -> None:
        """Do nothing: it is connected."""

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Do nothing: it was encrypted from the beginning, or isn't meant to be."""

    def write(self, payload: bytes) -> None:
        """Keep it until :meth:`drain`."""
        self._pending.append(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Keep several pieces until :meth:`drain`."""
        self._pending.extend(payload)

    async def drain(self) -> None:
        """Send what is kept."""
        if not self._pending:
            return
        data, self._pending = b"".join(self._pending), []
        try:
            await self._socket.send(data)
        except ConnectionClosed as error:
            raise ConnectionError(str(error)) from error

    async def read(self, buffer_size: int) -> bytes:  # noqa: ARG002 - a frame comes as it is
        """Read what is there; nothing when the other side is gone."""
        if not self._read:
            await self._fill()
        data = bytes(self._read)
        self._read.clear()
        return data

    async def readline(self) -> bytes:
        """Read one line."""
        while (end := self._read.find(b"\n") + 1) == 0 and not self._ended:
            await self._fill()
        line = bytes(self._read[: end or None])
        del self._read[: len(line)]
        return line

    async def _fill(self) -> None:
        try:
            data = await self._socket.recv(decode=False)
        except ConnectionClosed:
            self._ended = True
        else:
            self._read += data

    def close(self) -> None:
        """Begin to close it."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._socket.close(), name="closing a WebSocket")

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        if self._closing is not None:
            await self._closing

    def at_eof(self) -> bool:
        """Tell whether the other side has closed it."""
        return self._ended

    def __bool__(self) -> bool:
        """Say that it is connected."""
        return True
