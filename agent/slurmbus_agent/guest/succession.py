"""Giving an agent's work to a fresh process of itself, before the site ends this one.

Only a new process has a CPU time that begins at nothing; ``execve`` keeps it. And whoever looks after the agent
(systemd, cron, a file with its number) knows one process and shall go on knowing it. So the first agent becomes, once
its successor stands by, a :mod:`waiter <slurmbus_agent.guest.waiter>`, which uses no CPU time; later agents are the
waiter's children. Four steps, each of which may fail without harm, since an agent may be killed at any moment:

1. the agent starts a successor, or has the waiter start one (SIGUSR2);
2. the successor connects, stands by, and tells the agent so (SIGUSR2);
3. the agent gives up the lease, as when it is stopped, and the successor takes it within a moment;
4. the agent ends, or becomes the waiter.

A successor that doesn't get the lease in time ends by itself. SIGUSR1 asks an agent to hand over at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass

from slurmbus_agent import budgets
from slurmbus_agent.guest import waiter
from slurmbus_agent.guest.judging import Judgement
from slurmbus_agent.lease import looks_again
from slurmbus_protocol.messages import Heartbeat

log = logging.getLogger(__name__)

READY = signal.SIGUSR2
HAND_OVER = signal.SIGUSR1


@dataclass(frozen=True)
class Heritage:
    """What an agent's process learns from whoever started it."""

    handovers: int = 0
    """How many agents there were before in this line."""
    parent: int = 0
    """The waiter, or the agent that will be it; 0 for the first agent."""
    predecessor: int = 0
    """Who waits for this process to stand by."""

    @classmethod
    def take(cls) -> Heritage:
        """Read it from the environment, and leave nothing there for processes that this one starts."""
        text = os.environ.pop(waiter.HERITAGE, "")
        return cls(*(int(number) for number in text.split(","))) if text else cls()


class Succession:
    """One agent's place in the line.

    Args:
        heritage: from the agent before.
        stop: is set when this process has nothing left to do.
    """

    def __init__(self, heritage: Heritage, stop: asyncio.Event) -> None:
        self.heritage = heritage
        self.stop = stop
        self._wanted = asyncio.Event()
        self._ready = asyncio.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._told = False
        self._serves = False
        self.reason = ""
        """Why this process hands over; empty when it doesn't."""
        self.over = False
        """Whether a successor stands by and gets the lease."""

    def listen(self) -> None:
        """Take signals from now on."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(HAND_OVER, self.want, "it was asked for")
        loop.add_signal_handler(READY, self._ready.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {HAND_OVER, READY})
        if self.heritage.parent:
            loop.call_later(budgets.HAND_OVER_PATIENCE, self._expire)
            self._watch_parent()

    def end(self) -> None:
        """End this process, and a successor with it: somebody stops the agent."""
        self.stop.set()
        if self._child is not None:
            self._child.terminate()

    def want(self, reason: str) -> None:
        """Hand over soon."""
        if not self._wanted.is_set():
            self.reason = reason
            self._wanted.set()

    def looks_again(self, holder: Heartbeat) -> float:
        """Give the pause until the next look at the lease: short for a successor, which tells now that it stands by."""
        if not self._told and self.heritage.predecessor:
            self._told = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.heritage.predecessor, READY)
        is_ours = holder.pid == self.heritage.predecessor and holder.host == platform.node()
        return budgets.HAND_OVER_LOOK if is_ours else looks_again(holder)

    def judged(self, judgement: Judgement) -> None:
        """Hear at each heartbeat how much is used; and see whether somebody still looks after this process."""
        self._serves = True
        if not self._ends_with_parent() and judgement.hand_over:
            self.want(judgement.hand_over)

    def _ends_with_parent(self) -> bool:
        if not self.heritage.parent or os.getppid() == self.heritage.parent:
            return False
        # Whoever looks after the agent takes it for ended, and starts another one.
        log.warning("process %d that looked after this agent is gone; ending", self.heritage.parent)
        self.stop.set()
        return True

    def _watch_parent(self) -> None:
        if not self._ends_with_parent():
            asyncio.get_running_loop().call_later(budgets.PARENT_LOOK, self._watch_parent)

    def _expire(self) -> None:
        """End a successor that hasn't come so far as to stand by."""
        if not self._serves:
            log.warning("couldn't stand by in time; ending")
            self.stop.set()

    async def run(self) -> None:
        """Hand over when it is wanted; come back when this process is over."""
        while True:
            await self._wanted.wait()
            log.warning("handing over to a fresh process: %s", self.reason)
            if not self._ready.is_set():  # one that was late is still there
                self._start()
            try:
                async with asyncio.timeout(budgets.HAND_OVER_PATIENCE):
                    await self._ready.wait()
            except TimeoutError:
                log.warning("no fresh process stands by; going on, and trying again")
                self._end_child()
                await asyncio.sleep(budgets.HAND_OVER_AGAIN)
                self._wanted.clear()
                self.reason = ""
                continue
            self.over = True
            self.stop.set()
            return

    def leave(self) -> None:
        """Become the waiter when this process is the one that is known as the agent; else come back, and end."""
        if not self.over:
            self._end_child()
            return
        if self._child is not None:
            waiter.become(self._child.pid, self.heritage.handovers + 1, _command())

    def _start(self) -> None:
        if self.heritage.parent:
            os.kill(self.heritage.parent, waiter.START)
            return
        heritage = f"{self.heritage.handovers + 1},{os.getpid()},{os.getpid()}"
        self._child = subprocess.Popen(
            _command(), env={**os.environ, waiter.HERITAGE: heritage}, stdin=subprocess.DEVNULL
        )

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()


def _command() -> list[str]:
    """Give the command line that started this process, with the interpreter by its full path."""
    return [sys.executable, *sys.orig_argv[1:]]
