"""A link to the server that can go half open: bytes are swallowed, and no connection is closed."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Proxy:
    """Passes TCP connections on to one port of this machine, in a thread of its own; a context manager."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._swallowing: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)
        self.port = 0
        self.accepted = 0
        """How many connections were made through it."""
        self.blocked = False
        """True: new connections are swallowed as well."""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def swallow(self) -> None:
        """From now on nothing passes on the connections that there are, either way."""
        done = threading.Event()

        def mark() -> None:
            self._swallowing |= self._writers
            done.set()

        self._loop.call_soon_threadsafe(mark)
        done.wait()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self.accepted += 1
        both = {writer, upstream}
        self._writers |= both
        if self.blocked:
            self._swallowing |= both
        with suppress(OSError, asyncio.CancelledError):  # asyncio makes a noise about cancelled handlers
            ways = [self._copy(reader, upstream), self._copy(upstream_reader, writer)]
            await asyncio.wait([asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED)
        self._writers -= both
        for end in both:
            end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if writer not in self._swallowing:
                    writer.write(data)
                    await writer.drain()
            if writer in self._swallowing:
                await asyncio.Event().wait()  # nor does it tell that the other end is gone
