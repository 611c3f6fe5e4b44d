"""The key and certificate of the link, and encrypted sockets in asyncio that read nothing ahead.

The certificate stands alone: runners find its fingerprint in the spool's file ``link``, which only this user can write,
and take no other. Who may speak for a job is still proven by the job's secret, inside.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from slurmbus_protocol.errors import InvalidSetting

T = TypeVar("T")
_MAKER = ("-m", "slurmbus_protocol.certificates", "slurmbus-link")


@dataclass(frozen=True)
class LinkKeys:
    """What an agent shows to runners; made anew for each run, and kept in memory only."""

    context: ssl.SSLContext
    fingerprint: str
    """SHA-256 of the certificate, in hex."""

    @classmethod
    async def make(cls) -> Self:
        """Make them in a process of its own: the library for it would cost the agent 11 MB for good."""
        maker = await asyncio.create_subprocess_exec(
            sys.executable, *_MAKER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        pem, said = await maker.communicate()
        if maker.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            raise InvalidSetting(f"the link's certificate can't be made: {''.join(last)}")
        return cls.of(pem.decode())

    @classmethod
    def of(cls, pem: str) -> Self:
        """Take a certificate and its key as PEM."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # a runner that comes back shakes hands again
        with tempfile.NamedTemporaryFile("w", prefix="slurmbus-", suffix=".pem") as file:  # mode 0600
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
        certificate = pem[: pem.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)]
        return cls(context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest())


class Encrypted:
    """A connection of a runner; one task may read and one write at a time.

    OpenSSL reads from the socket itself, one record at a time and only when it is asked: what isn't wanted yet stays
    in the kernel. asyncio's own TLS reads ahead.
    """

    def __init__(self, link: socket.socket, keys: LinkKeys) -> None:
        link.settimeout(0)
        self._link = keys.context.wrap_socket(link, server_side=True, do_handshake_on_connect=False)

    async def shake_hands(self) -> None:
        """Encrypt the connection; SSLError when the other side doesn't."""
        await self._done(self._link.do_handshake)

    async def receive(self, size: int) -> bytes:
        """Give what has come, at most so many bytes; none when the other side has ended."""
        return await self._done(lambda: self._link.recv(size))

    async def receive_into(self, room: memoryview) -> int:
        """Read into this room what has come."""
        return await self._done(lambda: self._link.recv_into(room))

    async def send(self, data: bytes) -> None:
        """Send everything."""
        with memoryview(data) as left:
            sent = 0
            while sent < len(left):
                piece = left[sent:]
                sent += await self._done(lambda piece=piece: self._link.send(piece))  # type: ignore[misc]

    def hang_up(self) -> None:
        """End the connection in both directions; what has come can still be read."""
        socket.socket.shutdown(self._link, socket.SHUT_RDWR)  # SSLSocket's own would go on in the clear

    def close(self) -> None:
        """Close the socket."""
        self._link.close()

    async def _done(self, work: Callable[[], T]) -> T:
        """Do something as soon as the socket lets it be done."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return work()
            except ssl.SSLWantReadError:
                await _ready(self._link.fileno(), loop.add_reader, loop.remove_reader)
            except ssl.SSLWantWriteError:
                await _ready(self._link.fileno(), loop.add_writer, loop.remove_writer)


async def _ready(
    descriptor: int, watch: Callable[[int, Callable[[], None]], object], forget: Callable[[int], object]
) -> None:
    turn = asyncio.get_running_loop().create_future()
    watch(descriptor, lambda: None if turn.done() else turn.set_result(None))
    try:
        await turn
    finally:
        forget(descriptor)
