"""One thread's loop over signals, descriptors, child processes and times; all of a launch happens in its turns."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmbus_agent.runner.signals import Signals


class Loop:
    """Calls back what is ready, or due."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._sources: dict[int, Callable[[], None]] = {}
        self._children: dict[int, Callable[[int], None]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call back when a descriptor can be read, or was closed at its other end."""
        self._sources[descriptor] = ready

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor."""
        self._sources.pop(descriptor, None)

    def add_child(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call back once with the end of a child: its exit code, or minus the signal. It leads a process group."""
        self._children[pid] = ended

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once when so much time has passed."""
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), call))

    def has(self, descriptor: int) -> bool:
        """Tell whether a descriptor is listened to."""
        return descriptor in self._sources

    def forget_children(self) -> None:
        """Call nobody back for the children that there are."""
        self._children.clear()

    def turn(self, until: float) -> list[int]:
        """Wait for something to happen, at most until a monotonic time; give the signals meant for the payload."""
        poll = select.poll()
        poll.register(self._signals.descriptor, select.POLLIN)
        for descriptor in self._sources:
            poll.register(descriptor, select.POLLIN)
        self._reap()  # what ended before the first turn
        if self._due:
            until = min(until, self._due[0][0])
        for descriptor, _ in poll.poll(max(0.0, (until - time.monotonic()) * 1000 + 0.5)):
            if descriptor in self._sources:
                self._sources[descriptor]()
        taken = self._signals.take()
        self._reap()
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        return taken

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            ended = self._children.pop(found.si_pid, None)
            if ended is not None:  # while it isn't waited for nobody else can have its number
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(found.si_pid, signal.SIGKILL)
            _, status = os.waitpid(found.si_pid, 0)
            if ended is not None:
                ended(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
