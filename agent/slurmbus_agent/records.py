"""The records: the last message on each job's state subject, written with the expected sequence.

One fsynced write is record and event. A write whose answer was lost may still have been stored; the next write finds
that out by its sequence and goes on from what is really there. Nothing is written while the lease isn't held, and
what another agent has written with a newer lease is never overwritten.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from slurmbus_agent import budgets
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, Stored, WrongSequence
from slurmbus_protocol.errors import BusFull, BusUnreachable, SlurmbusError
from slurmbus_protocol.messages import Record

log = logging.getLogger(__name__)


class Fenced(SlurmbusError):
    """This agent may write no more records: another one has a newer lease, or the bus is another one."""

    code = "fenced"


class RecordStore:
    """Reads and writes the records of one site.

    Args:
        bus: the connection.
        site: whose records.
        guard: whether this agent holds the lease at this moment.
    """

    def __init__(self, bus: Bus, site: str, guard: Callable[[], bool]) -> None:
        self._bus = bus
        self._site = site
        self._guard = guard
        self._sequences: dict[tuple[str, int], int] = {}
        self.full = False
        """True while the stream of states takes nothing more."""

    def reset(self) -> None:
        """Forget what is known of the bus: it may be another one."""
        self._sequences.clear()

    async def read(self, key: str, task: int = 0) -> Record | None:
        """Read a record from the bus; BusUnreachable when it can't be known whether there is one."""
        stored = await self._stored(key, task)
        return None if stored is None else codec.decode_as(stored.data, Record)

    async def _stored(self, key: str, task: int) -> Stored | None:
        stored = await self._bus.last(subjects.STATES, subjects.state(self._site, key, task))
        self._sequences[key, task] = stored.sequence if stored is not None else 0
        return stored

    async def create(self, record: Record) -> Record | None:
        """Write a record if there is none yet; otherwise give the one that is there."""
        await self._permission()
        subject = subjects.state(record.site, record.key, record.task)
        try:
            sequence = await self._bus.publish(subject, codec.encode(record), expected_last=0)
        except WrongSequence:
            return await self.read(record.key, record.task)
        except BusFull:
            self.full = True
            raise
        self.full = False
        self._sequences[record.key, record.task] = sequence
        return None

    async def take_over(self, key: str, task: int, epoch: int, rebuilt: Record | None) -> Record | None:
        """Put an unfinished record under our epoch, whatever an older agent still writes meanwhile.

        Args:
            key: of the job.
            task: of the job.
            epoch: ours.
            rebuilt: what to write when the bus has no record.

        Returns:
            The record as it is on the bus now; None when there is none and ``rebuilt`` is None.

        Raises:
            Fenced: its epoch is newer than ours.
        """
        attempt = 0
        while True:
            try:
                stored = await self._stored(key, task)
                there = codec.decode_as(stored.data, Record) if stored is not None else rebuilt
                if there is None:
                    return None
                if stored is not None and there.epoch > epoch:
                    raise Fenced(f"job {key}: a newer agent has taken over")
                if stored is not None and (there.state.is_final or there.epoch == epoch):
                    return there
                ours = msgspec.structs.replace(there, epoch=epoch, updated_at=time.time())
                await self._permission()
                subject = subjects.state(self._site, key, task)
                expected = self._sequences[key, task]
                self._sequences[key, task] = await self._bus.publish(
                    subject, codec.encode(ours), expected_last=expected
                )
            except WrongSequence:
                continue
            except (BusUnreachable, BusFull) as error:
                log.info("taking job %s over: %s", key, error, extra={"job": key})
                attempt = await _pause(attempt)
            else:
                return ours

    async def write(self, record: Record) -> Record:
        """Make a record durable, however long the bus takes; give it with its time of writing.

        Raises:
            Fenced: another agent has taken over, or the bus is another one.
        """
        record = msgspec.structs.replace(record, updated_at=time.time())
        attempt = 0
        while True:
            await self._permission()
            try:
                await self._write_once(record)
            except BusFull as error:
                self.full = True
                log.warning("the stream of states is full: %s", error)
                await asyncio.sleep(budgets.FULL_RETRY)
            except BusUnreachable:
                attempt = await _pause(attempt)
            else:
                self.full = False
                return record

    async def _permission(self) -> None:
        """Wait until the lease is held; when it is lost, whoever waits here is cancelled."""
        while not self._guard():  # noqa: ASYNC110  # a lease ends by the clock, which sets no event
            await asyncio.sleep(budgets.GUARD_AGAIN)

    async def _write_once(self, record: Record) -> None:
        subject = subjects.state(record.site, record.key, record.task)
        name = (record.key, record.task)
        data = codec.encode(record)
        try:
            self._sequences[name] = await self._bus.publish(subject, data, expected_last=self._sequences.get(name, 0))
        except WrongSequence:
            stored = await self._stored(*name)
            if stored is None:
                raise Fenced(f"job {record.key}: the bus has no record of it any more") from None
            if stored.data == data:
                return
            if codec.decode_as(stored.data, Record).epoch > record.epoch:
                raise Fenced(f"job {record.key}: a newer agent has taken over") from None
            # An earlier write of our own, whose answer was lost.
            await self._permission()
            await self._write_once(record)

    def forget(self, key: str, task: int = 0) -> None:
        """Drop what is remembered of a job."""
        self._sequences.pop((key, task), None)


async def _pause(attempt: int) -> int:
    await asyncio.sleep(budgets.BUS_RETRY[min(attempt, len(budgets.BUS_RETRY) - 1)])
    return attempt + 1
