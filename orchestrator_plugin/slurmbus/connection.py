"""The one background connection of a process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from slurmbus.session import Session
from slurmbus.settings import ConnectionSettings

__all__ = ["Connection", "ConnectionSettings"]

T = TypeVar("T")
CLOSE_TIMEOUT = 5.0
SLOW = 2.0
"""Seconds after which a person wants to know what is being waited for."""


class _Background:
    """A daemon thread with an event loop and a session."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.session = Session(settings)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slurmbus connection", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self.session:
            self._ready.set()
            await self._stop.wait()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        async def adopted() -> T:
            task = asyncio.current_task()
            if task is not None:
                self.session.adopt(task)
            return await coroutine

        return asyncio.run_coroutine_threadsafe(adopted(), self.loop)

    @property
    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(CLOSE_TIMEOUT)


class Connection:
    """A daemon thread with an event loop and the bus; lazy, shared, and made anew in a forked child.

    Use :meth:`get`. Threads of a process share it; a forked child that uses a connection of its parent gets a thread,
    loop and sockets of its own and never touches the parent's.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self._background: _Background | None = None

    @classmethod
    def get(cls, settings: ConnectionSettings) -> Connection:
        """Give this process's connection for these settings; nothing is opened yet."""
        return _all.get(settings)

    @property
    def session(self) -> Session:
        """The asynchronous half; its methods are coroutines for :meth:`run`."""
        return self._started().session

    @property
    def is_open(self) -> bool:
        """True while there is a thread of this process."""
        return self._background is not None

    def start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the connection's loop."""
        return self._started().start(coroutine)

    def run(
        self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None, *, slow: Callable[[], None] | None = None
    ) -> T:
        """Run a coroutine on the connection's loop and wait for it.

        Signals are handled while it waits; when a handler raises (KeyboardInterrupt), the coroutine is cancelled.

        Args:
            coroutine: what to run.
            timeout: seconds that it may take.
            slow: called once, on this thread, when it has taken longer than SLOW seconds.

        Raises:
            TimeoutError: it took longer than ``timeout`` seconds and was cancelled.
            RuntimeError: called on the connection's own thread.
        """
        if self._started().is_current_thread:
            coroutine.close()
            raise RuntimeError("Connection.run() can't be called on the connection's own thread: await instead")
        future = self.start(coroutine)
        try:
            if slow is not None and (timeout is None or timeout > SLOW):
                concurrent.futures.wait([future], SLOW)
                if not future.done():
                    slow()
                timeout = None if timeout is None else timeout - SLOW
            return future.result(timeout)
        finally:
            future.cancel()

    def close(self) -> None:
        """Close the connection and end its thread; the next use opens it again."""
        with _all.lock:
            background, self._background = self._background, None
        if background is not None:
            background.stop()

    def _started(self) -> _Background:
        with _all.lock:
            if self._background is None:
                self._background = _Background(self.settings)
            return self._background

    def _abandon(self) -> _Background | None:
        background, self._background = self._background, None
        return background


class _Connections:
    """All connections of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._by_settings: dict[ConnectionSettings, Connection] = {}
        self._inherited: list[_Background] = []

    def get(self, settings: ConnectionSettings) -> Connection:
        with self.lock:
            return self._by_settings.setdefault(settings, Connection(settings))

    def close(self) -> None:
        for connection in list(self._by_settings.values()):
            connection.close()

    def forked(self) -> None:
        """In the child: the threads are gone, and another one may have held the lock.

        The parent's loops and sockets are kept untouched: collecting them would close what the parent uses.
        """
        self.lock = threading.RLock()
        for connection in self._by_settings.values():
            background = connection._abandon()  # noqa: SLF001 - of this module
            if background is not None:
                self._inherited.append(background)


_all = _Connections()
atexit.register(_all.close)
os.register_at_fork(after_in_child=_all.forked)
