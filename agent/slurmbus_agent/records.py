"""The records: the last message on each job's state subject, written with the expected sequence.

One fsynced write is record and event. A write whose answer was lost may still have been stored; the next write finds
that out by its sequence and goes on from what is really there.
"""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from slurmbus_agent import budgets
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, WrongSequence
from slurmbus_protocol.errors import BusFull, BusUnreachable, SlurmbusError
from slurmbus_protocol.messages import Record

log = logging.getLogger(__name__)


class Fenced(SlurmbusError):
    """Another agent with a newer lease has written this record."""

    code = "fenced"


class RecordStore:
    """Reads and writes the records of one site."""

    def __init__(self, bus: Bus, site: str) -> None:
        self._bus = bus
        self._site = site
        self._sequences: dict[tuple[str, int], int] = {}
        self.full = False
        """True while the stream of states takes nothing more."""

    async def read(self, key: str, task: int = 0) -> Record | None:
        """Read a record from the bus; BusUnreachable when it can't be known whether there is one."""
        stored = await self._bus.last(subjects.STATES, subjects.state(self._site, key, task))
        if stored is None:
            return None
        self._sequences[key, task] = stored.sequence
        return codec.decode_as(stored.data, Record)

    async def create(self, record: Record) -> Record | None:
        """Write a record if there is none yet; otherwise give the one that is there."""
        subject = subjects.state(record.site, record.key, record.task)
        try:
            sequence = await self._bus.publish(subject, codec.encode(record), expected_last=0)
        except WrongSequence:
            return await self.read(record.key, record.task)
        self._sequences[record.key, record.task] = sequence
        return None

    async def write(self, record: Record) -> Record:
        """Make a record durable, however long the bus takes; give it with its time of writing.

        Raises:
            Fenced: another agent has taken over.
        """
        record = msgspec.structs.replace(record, updated_at=time.time())
        attempt = 0
        while True:
            try:
                await self._write_once(record)
            except BusFull as error:
                self.full = True
                log.warning("the stream of states is full: %s", error)
                await asyncio.sleep(budgets.FULL_RETRY)
            except BusUnreachable:
                await asyncio.sleep(budgets.BUS_RETRY[min(attempt, len(budgets.BUS_RETRY) - 1)])
                attempt += 1
            else:
                self.full = False
                return record

    async def _write_once(self, record: Record) -> None:
        subject = subjects.state(record.site, record.key, record.task)
        expected = self._sequences.get((record.key, record.task), 0)
        data = codec.encode(record)
        try:
            sequence = await self._bus.publish(subject, data, expected_last=expected)
        except WrongSequence:
            stored = await self._bus.last(subjects.STATES, subject)
            if stored is None:
                self._sequences[record.key, record.task] = 0
            else:
                there = codec.decode_as(stored.data, Record)
                if there.epoch > record.epoch:
                    raise Fenced(f"job {record.key}: a newer agent has taken over") from None
                self._sequences[record.key, record.task] = stored.sequence
                if stored.data == data:
                    return
            await self._write_once(record)
        else:
            self._sequences[record.key, record.task] = sequence

    def forget(self, key: str, task: int = 0) -> None:
        """Drop what is remembered of a job."""
        self._sequences.pop((key, task), None)
