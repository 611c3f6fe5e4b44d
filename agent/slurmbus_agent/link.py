"""The socket on which runners report (stub: the signatures are final)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from slurmbus_agent.spool_files import EndReport, LinkAddress
from slurmbus_protocol.messages import Start
from slurmbus_protocol.subjects import Stream

__all__ = ["EndReport", "LinkAddress", "LinkServer", "LinkSink"]

BUDGET_BYTES = 16 * 1024 * 1024


class LinkSink(Protocol):
    """Takes what runners report.

    Calls for one start never overlap those of an earlier connection of the same start: ``hello``, then
    ``started``, ``ended`` and ``chunk`` (one at a time for each stream, in order), then ``lost``.
    Every call may be repeated on the next connection. A SlurmbusError from a call ends the connection; the runner
    comes again, with back-off.
    """

    async def hello(self, key: str, task: int, start: Start) -> dict[str, int] | None:
        """Give the offset at which each stream goes on (0 when it isn't named), or None to refuse the start."""
        ...

    async def chunk(self, key: str, task: int, start: int, stream: Stream, offset: int, data: bytes) -> int:
        """Come back when the bytes are durable, with the next offset that is wanted (any, also an earlier one)."""
        ...

    async def started(self, key: str, task: int, start: int, started_at: float) -> None:
        """Hear that the payload runs."""
        ...

    async def ended(self, key: str, task: int, start: int, end: EndReport) -> None:
        """Hear that the payload ended; the last chunks may still follow. The runner waits for this to come back."""
        ...

    def lost(self, key: str, task: int, start: int) -> None:
        """Hear that the connection is gone; every chunk that had arrived was handed over before."""
        ...


class LinkServer:
    """Listens for runners.

    Args:
        sink: takes what they report.
        secrets: gives the secret of (key, task), or None when there is no such job; must not block for long.
        host: the address to listen on.
        budget_bytes: how many bytes may be under way to the sink, over all connections.
        advertise: the names or addresses under which compute nodes reach this host; its interfaces' when empty.
        epoch: stands in the address, for people.
    """

    def __init__(
        self,
        sink: LinkSink,
        secrets: Callable[[str, int], bytes | None],
        host: str = "0.0.0.0",  # noqa: S104 - runners come from other hosts, and prove themselves
        budget_bytes: int = BUDGET_BYTES,
        *,
        advertise: Sequence[str] = (),
        epoch: int = 0,
    ) -> None:
        self.in_flight = 0
        """Bytes that have arrived and aren't acknowledged."""
        self.refused: dict[str, int] = {}
        """Connections that were dropped, by reason."""

    @property
    def connections(self) -> int:
        """How many runners are connected."""
        raise NotImplementedError

    async def start(self) -> LinkAddress:
        """Listen, and give the address for :meth:`slurmbus_agent.spool.Spool.write_link`."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Let go of all runners: they look for the next agent in the spool's file ``link``."""
        raise NotImplementedError
