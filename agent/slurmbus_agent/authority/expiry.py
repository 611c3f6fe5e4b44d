"""How long what somebody has signed counts, and what was asked with it already.

A bus that was taken over may deliver a signed request as often as it likes, and lie about the time. So a request
expires by the bus's clock, which is the one that clients and agents share, and, with a margin, by this host's own.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from nats.aio.msg import Msg

from slurmbus_agent import budgets
from slurmbus_protocol.errors import RequestExpired
from slurmbus_protocol.signing import KEY_HEADER

OWN_CLOCK_MARGIN = 6 * 3600.0
"""Seconds by which a request must have expired by this host's own clock to be refused for that: a bus that lies about
the time mustn't bring back requests of jobs that nobody remembers. Jobs are forgotten a day after expiry or later."""


class Expiry:
    """Tells whether a request still counts.

    Args:
        bus_time: the bus's clock, or None when it isn't known.
        clock: this host's time of day.
    """

    def __init__(self, bus_time: Callable[[], float | None], clock: Callable[[], float] = time.time) -> None:
        self._bus_time = bus_time
        self.clock = clock

    def check(self, expires_at: float) -> None:
        """Raise RequestExpired when a request has expired by either clock."""
        own = self.clock()
        now = self._bus_time()
        if not expires_at >= (own if now is None else now):  # also what is no number
            raise RequestExpired("the request expired before an agent could take it")
        if expires_at < own - OWN_CLOCK_MARGIN:
            raise RequestExpired("the request expired long ago by the clock of the agent's host")


def claimed(msg: Msg) -> str:
    """Give the key under which a question comes; whose it is, its signature has to tell."""
    return (msg.headers or {}).get(KEY_HEADER, "")


def identity(msg: Msg) -> bytes:
    """Tell one question from another: two people may ask the same."""
    return hashlib.sha256(f"{claimed(msg)}\0{msg.subject}\0".encode() + msg.data).digest()


class Memory:
    """What has been asked, for as long as it could be asked again; of very much the oldest is forgotten first.

    Args:
        clock: this host's time of day.
        most: how much is remembered.
    """

    def __init__(self, clock: Callable[[], float] = time.time, most: int = budgets.QUESTIONS_REMEMBERED) -> None:
        self._clock = clock
        self._most = most
        self._until: OrderedDict[Hashable, float] = OrderedDict()

    def __contains__(self, what: Hashable) -> bool:
        """Tell whether this was added and could still be asked again."""
        return self._until.get(what, 0.0) > self._clock()

    def __len__(self) -> int:
        """Give how much is remembered."""
        return len(self._until)

    def add(self, what: Hashable, expires_at: float) -> bool:
        """Remember something that expires then; False when it was known."""
        known = what in self
        self._until[what] = max(expires_at + OWN_CLOCK_MARGIN, self._until.get(what, 0.0))
        self._until.move_to_end(what)
        while len(self._until) > self._most:
            self._until.popitem(last=False)
        return not known
