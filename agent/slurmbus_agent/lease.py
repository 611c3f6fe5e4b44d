"""One active agent per site: a key that is renewed by compare-and-set.

No wall clocks: a standby takes over when the key's revision hasn't changed for the lease time on its own clock
(CLOCK_BOOTTIME, which goes on while a laptop sleeps). A refused or timed-out renewal never decides leadership by
itself: the agent looks at the key, and its own id there means that it holds the lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import StrEnum

from slurmbus_agent import budgets
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, Stored, WrongSequence
from slurmbus_protocol.errors import BadMessage, BusFull, BusUnreachable
from slurmbus_protocol.messages import Heartbeat

log = logging.getLogger(__name__)

_BUCKET = f"KV_{subjects.AGENTS_BUCKET}"


def boot_time() -> float:
    """Seconds on the clock that leases are measured with."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Role(StrEnum):
    """As what an agent speaks in its heartbeat."""

    LEADER = "leader"
    STANDBY = "standby"
    RELEASED = "released"


class LeaseLost(Exception):
    """Another agent holds the lease now."""


class Lease:
    """The lease of one site, as one agent sees it.

    Args:
        bus: the connection.
        site: whose lease.
        agent_id: who we are.
        heartbeat: makes the message for an epoch and a role.
    """

    def __init__(self, bus: Bus, site: str, agent_id: str, heartbeat: Callable[[int, Role], Heartbeat]) -> None:
        self._bus = bus
        self._subject = subjects.lease(site)
        self._standby_subject = subjects.standby(site, agent_id)
        self._agent_id = agent_id
        self._heartbeat = heartbeat
        self._sequence = 0
        self._valid_until: float | None = None
        self._bus_clock: tuple[float, float] | None = None
        self.epoch = 0
        self.latency: float | None = None

    @property
    def deadline(self) -> float | None:
        """The CLOCK_BOOTTIME until which this agent may act; None when it holds no lease."""
        return self._valid_until

    @property
    def held(self) -> bool:
        """True while this agent may act."""
        return self._valid_until is not None and boot_time() < self._valid_until

    @property
    def bus_time(self) -> float | None:
        """The bus's clock, as far as it is known: our own may be wrong, and requests expire by the bus's."""
        if self._bus_clock is None:
            return None
        stored, seen = self._bus_clock
        return stored + boot_time() - seen

    async def acquire(self) -> None:
        """Wait until the lease is ours; meanwhile stand by and say so."""
        seen: tuple[int, float] | None = None
        told = 0.0
        while True:
            try:
                stored = await self._bus.last(_BUCKET, self._subject)
                holder = _holder(stored)
                if stored is None or holder is None or holder.released or holder.agent_id == self._agent_id:
                    if await self._take(stored, holder):
                        return
                    continue
                now = boot_time()
                if seen is None or seen[0] != stored.sequence:
                    seen = (stored.sequence, now)
                elif now - seen[1] > holder.lease_seconds:
                    log.warning("the agent on %s has been silent for %.0f s: taking over", holder.host, now - seen[1])
                    if await self._take(stored, holder):
                        return
                    continue
                if now - told > budgets.HEARTBEAT_IDLE:
                    log.info("standing by: %s on %s holds the lease", holder.agent_id, holder.host)
                    told = now
                    await self._bus.publish(
                        self._standby_subject, codec.encode(self._heartbeat(holder.epoch, Role.STANDBY))
                    )
            except (BusUnreachable, BusFull) as error:
                log.info("waiting for the bus: %s", error)
            await asyncio.sleep(1.0)

    async def _take(self, stored: Stored | None, holder: Heartbeat | None) -> bool:
        self.epoch = (holder.epoch if holder else 0) + 1
        sent = boot_time()
        message = self._heartbeat(self.epoch, Role.LEADER)
        try:
            self._sequence = await self._bus.publish(
                self._subject, codec.encode(message), expected_last=stored.sequence if stored else 0
            )
        except WrongSequence:
            return False
        self._renewed(sent, message)
        written = await self._bus.last(_BUCKET, self._subject)
        if written is not None:
            self._bus_clock = (written.time, boot_time())
        return True

    def _renewed(self, sent: float, message: Heartbeat) -> None:
        self.latency = boot_time() - sent
        self._valid_until = sent + message.lease_seconds - budgets.LEASE_MARGIN

    async def renew(self) -> None:
        """Renew once; quietly without success while the bus is away; LeaseLost when somebody else has taken it."""
        sent = boot_time()
        message = self._heartbeat(self.epoch, Role.LEADER)
        try:
            self._sequence = await self._bus.publish(
                self._subject, codec.encode(message), expected_last=self._sequence, timeout=2.0
            )
            self._renewed(sent, message)
        except WrongSequence:
            await self._look()
        except (BusUnreachable, BusFull) as error:
            log.info("the lease couldn't be renewed: %s", error)

    async def _look(self) -> None:
        stored = await self._bus.last(_BUCKET, self._subject)
        holder = _holder(stored)
        if stored is not None and holder is not None:
            if holder.agent_id != self._agent_id or holder.epoch != self.epoch:
                self._valid_until = None
                raise LeaseLost(f"{holder.agent_id} on {holder.host} holds the lease")
            self._sequence = stored.sequence
        else:
            self._sequence = 0

    async def release(self) -> None:
        """Give the lease up, so that a standby takes over at once."""
        if self._valid_until is None:
            return
        self._valid_until = None
        message = self._heartbeat(self.epoch, Role.RELEASED)
        try:
            await self._bus.publish(self._subject, codec.encode(message), expected_last=self._sequence, timeout=2.0)
        except (WrongSequence, BusUnreachable, BusFull) as error:
            log.info("the lease couldn't be given up: %s", error)


def _holder(stored: Stored | None) -> Heartbeat | None:
    if stored is None:
        return None
    try:
        return codec.decode_as(stored.data, Heartbeat)
    except BadMessage as error:
        log.warning("the lease can't be read and is replaced: %s", error)
        return None
