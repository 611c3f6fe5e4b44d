"""Frames over one socket of the link, with bounded memory.

asyncio's streams read ahead, up to 256 KiB a connection; with a thousand runners that is more than the agent's whole
budget. Here a record of TLS is only read when there is room for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Iterator
from ssl import SSLError
from typing import Any

from slurmbus_agent.link_tls import Encrypted, LinkKeys
from slurmbus_agent.runner import frames

_SMALL = 4096
_OVERHEAD = 1024
"""What a frame costs besides its data."""
_SMALL_FRAME = 16 * 1024
_SHARES = (0.6, 0.75, 1.0)
"""Of large pieces of logs, of small ones as well, of messages as well: what can't be relayed doesn't hold up what comes
behind it in this order, and one job's flood not the lines of the others."""
KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 8),
    (socket.TCP_KEEPINTVL, 3),
    (socket.TCP_KEEPCNT, 2),
    (socket.TCP_USER_TIMEOUT, 15_000),
)
"""The kernel notices a dead host within 15 s, idle or not, at no cost to this process."""


class PeerGone(Exception):
    """The other side has closed the connection, or can't be reached any more."""


_Turns = deque[tuple[int, asyncio.Future[None]]]


class Budget:
    """Bytes that may be in memory for all connections together."""

    def __init__(self, limit: int) -> None:
        self._limits = tuple(int(limit * share) for share in _SHARES)
        self._waiting: tuple[_Turns, ...] = (deque(), deque(), deque())
        self.used = 0

    async def take(self, size: int, *, urgent: bool) -> int:
        """Wait until there is room for a frame with ``size`` bytes of data, and give what to hand back."""
        cost = size + _OVERHEAD
        kind = 2 if urgent else int(size <= _SMALL_FRAME)
        waiting = self._waiting[kind]
        if waiting or not self._fits(cost, kind):
            turn = asyncio.get_running_loop().create_future()
            entry = (cost, turn)
            waiting.append(entry)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.give(cost)
                else:
                    with contextlib.suppress(ValueError):  # skipped already
                        waiting.remove(entry)
                raise
        else:
            self.used += cost
        return cost

    def give(self, cost: int) -> None:
        """Hand room back."""
        self.used -= cost
        for kind, waiting in reversed(list(enumerate(self._waiting))):
            while waiting and self._fits(waiting[0][0], kind):
                cost, turn = waiting.popleft()
                if not turn.done():
                    self.used += cost
                    turn.set_result(None)

    def _fits(self, cost: int, kind: int) -> bool:
        return self.used == 0 or self.used + cost <= self._limits[kind]


class Traffic:
    """Bytes over all connections."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0


class Wire:
    """One connection; whoever reads is one task, writers may be many.

    Args:
        link: the socket.
        keys: what the runner is shown.
        traffic: is counted up.
    """

    def __init__(self, link: socket.socket, keys: LinkKeys, traffic: Traffic) -> None:
        self._traffic = traffic
        self._buffer = bytearray()
        self._writing = asyncio.Lock()
        self.owing = 0
        """How many answers the runner waits for; while it does, it hears from us that we are alive."""
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            link.setsockopt(socket.IPPROTO_TCP, option, value)
        self._link = Encrypted(link, keys)

    async def secure(self) -> None:
        """Encrypt it; SSLError when the other side doesn't, PeerGone when it is gone."""
        try:
            await self._link.shake_hands()
        except SSLError:
            raise
        except OSError as error:
            raise PeerGone(str(error)) from error

    async def line(self) -> tuple[bytes, int]:
        """Give the next frame's header as it came, and how many bytes of data follow it.

        Raises:
            BadFrame: it is none.
            PeerGone: there is none.
        """
        while len(self._buffer) < frames.PREFIX:
            await self._fill()
        size = frames.length(bytes(self._buffer[: frames.PREFIX]))
        most = frames.PREFIX + min(size, frames.MAX_HEADER)
        while (newline := self._buffer.find(b"\n", frames.PREFIX, most)) < 0:
            if len(self._buffer) >= most:
                raise frames.BadFrame("a frame without a header")
            await self._fill()
        line = bytes(self._buffer[frames.PREFIX : newline + 1])
        del self._buffer[: newline + 1]
        return line, size - len(line)

    async def header(self) -> dict[str, Any]:
        """Give the next frame, which must have no data."""
        line, size = await self.line()
        if size:
            raise frames.BadFrame(f"{size:,} bytes that don't belong here")
        return frames.header_of(line)

    async def data(self, size: int) -> bytes:
        """Give the data after a header."""
        data = bytearray(self._buffer[:size])
        del self._buffer[:size]
        have = len(data)
        data.extend(bytes(size - have))
        with memoryview(data) as view, _lost_is_gone():
            while have < size:
                have += self._some(await self._link.receive_into(view[have:]))
        return bytes(data)

    async def _fill(self) -> None:
        with _lost_is_gone():
            data = await self._link.receive(_SMALL)
        self._some(len(data))
        self._buffer += data

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a frame; when the other side is gone, nothing happens, and the reader will notice."""
        data = frames.pack({"type": kind, **fields})
        self._traffic.sent += len(data)
        async with self._writing:
            try:
                await self._link.send(data)
            except OSError:
                self.hang_up()
            except asyncio.CancelledError:
                self.hang_up()  # half a frame may be out
                raise

    def _some(self, received: int) -> int:
        if not received:
            raise PeerGone("closed")
        self._traffic.received += received
        return received

    def hang_up(self) -> None:
        """End the connection: the reader gets PeerGone."""
        with contextlib.suppress(OSError):  # the other side was quicker
            self._link.hang_up()

    def close(self) -> None:
        """Close the socket."""
        self._link.close()


@contextlib.contextmanager
def _lost_is_gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PeerGone(str(error)) from error
