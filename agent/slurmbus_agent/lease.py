"""One active agent per site: a key that is renewed by compare-and-set.

No wall clocks: a standby takes over when the key's revision hasn't changed for the lease time on its own clock
(CLOCK_BOOTTIME, which goes on while a laptop sleeps). A refused or timed-out renewal never decides leadership by
itself: the agent looks at the key, and its own id there means that it holds the lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
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


def looks_again(holder: Heartbeat) -> float:
    """Give a standby's pause between two looks at the lease."""
    return holder.interval / budgets.STANDBY_LOOKS


class Lease:
    """The lease of one site, as one agent sees it.

    Args:
        bus: the connection.
        site: whose lease.
        agent_id: who we are.
        heartbeat: makes the message for an epoch and a role.
        same_bus: tells whether the bus is still the one on which the lease was acquired.
        looks_again: gives the seconds until the next look at the lease of whoever holds it.
    """

    def __init__(
        self,
        bus: Bus,
        site: str,
        agent_id: str,
        heartbeat: Callable[[int, Role], Heartbeat],
        same_bus: Callable[[], Awaitable[bool]],
        looks_again: Callable[[Heartbeat], float] = looks_again,
    ) -> None:
        self._bus = bus
        self._subject = subjects.lease(site)
        self._standby_subject = subjects.standby(site, agent_id)
        self._agent_id = agent_id
        self._heartbeat = heartbeat
        self._same_bus = same_bus
        self._looks_again = looks_again
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

    async def acquire(self, epochs: int = 0) -> None:
        """Wait until the lease is ours; meanwhile stand by and say so.

        Args:
            epochs: how many there were at least: a new bus knows of none.

        Raises:
            LeaseLost: the bus is another one since we began.
        """
        seen: tuple[int, float] | None = None
        known: Heartbeat | None = None
        told = -budgets.HEARTBEAT_IDLE
        pause = 1.0
        while True:
            try:
                stored = await self._bus.last(_BUCKET, self._subject)
                holder = _holder(stored)
                if stored is None and known is not None:
                    holder = await self._evicted(known)
                if holder is None or holder.released or holder.agent_id == self._agent_id:
                    if await self._take(stored, max(epochs, holder.epoch if holder else 0) + 1):
                        return
                    continue
                known = holder
                now = boot_time()
                sequence = stored.sequence if stored is not None else 0
                if seen is None or seen[0] != sequence:
                    seen = (sequence, now)
                elif now - seen[1] > holder.lease_seconds:
                    log.warning("the agent on %s has been silent for %.0f s: taking over", holder.host, now - seen[1])
                    if await self._take(stored, max(epochs, holder.epoch) + 1):
                        return
                    continue
                if now - told > budgets.HEARTBEAT_IDLE:
                    log.info("standing by: %s on %s holds the lease", holder.agent_id, holder.host)
                    told = now
                    await self._bus.publish(
                        self._standby_subject, codec.encode(self._heartbeat(holder.epoch, Role.STANDBY))
                    )
                # The lease's end isn't slept through: it counts from when this standby saw it renewed.
                left = seen[1] + holder.lease_seconds - boot_time()
                pause = min(self._looks_again(holder), max(left, budgets.GUARD_AGAIN))
            except (BusUnreachable, BusFull) as error:
                log.info("waiting for the bus: %s", error)
            await asyncio.sleep(pause)

    async def _evicted(self, known: Heartbeat) -> Heartbeat:
        """Give the holder whose message is gone: it is as alive as before, unless the bus is another one."""
        if not await self._same_bus():
            raise LeaseLost("the bus is another one")
        return known

    async def _take(self, stored: Stored | None, epoch: int) -> bool:
        self.epoch = epoch
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

    async def renew(self) -> bool:
        """Renew once; False without success while the bus is away.

        Raises:
            LeaseLost: somebody else has it, or the bus is another one.
        """
        sent = boot_time()
        message = self._heartbeat(self.epoch, Role.LEADER)
        try:
            try:
                self._sequence = await self._bus.publish(
                    self._subject, codec.encode(message), expected_last=self._sequence, timeout=2.0
                )
            except WrongSequence:
                await self._look()
                return False
        except (BusUnreachable, BusFull) as error:
            log.info("the lease couldn't be renewed: %s", error)
            return False
        self._renewed(sent, message)
        return True

    async def _look(self) -> None:
        """Find out whose lease it is: a renewal that timed out may have been stored, or our message evicted."""
        stored = await self._bus.last(_BUCKET, self._subject)
        holder = _holder(stored)
        if stored is None or holder is None:
            if not await self._same_bus():
                self._valid_until = None
                raise LeaseLost("the bus is another one")
            self._sequence = stored.sequence if stored is not None else 0
            return
        if holder.agent_id != self._agent_id or holder.epoch != self.epoch:
            self._valid_until = None
            raise LeaseLost(f"{holder.agent_id} on {holder.host} holds the lease")
        self._sequence = stored.sequence

    async def release(self) -> None:
        """Give the lease up, so that a standby takes over at once."""
        if self._valid_until is None:
            return
        self._valid_until = None
        try:
            try:
                await self._tell_release()
            except WrongSequence:  # our last renewal was stored, and we were stopped before its answer came
                await self._look()
                await self._tell_release()
        except (LeaseLost, WrongSequence, BusUnreachable, BusFull) as error:
            log.info("the lease couldn't be given up: %s", error)

    async def _tell_release(self) -> None:
        message = codec.encode(self._heartbeat(self.epoch, Role.RELEASED))
        await self._bus.publish(self._subject, message, expected_last=self._sequence, timeout=2.0)


def _holder(stored: Stored | None) -> Heartbeat | None:
    if stored is None:
        return None
    try:
        return codec.decode_as(stored.data, Heartbeat)
    except BadMessage as error:
        log.warning("the lease can't be read and is replaced: %s", error)
        return None
