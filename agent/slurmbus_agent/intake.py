"""Takes requests off the bus: checks them, makes them durable, then acknowledges.

A request is acknowledged as soon as its record and its spool exist, never held for the life of a job. A request that
comes again finds its record. A bad one is answered with a REJECTED record that says what is wrong with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from weakref import WeakValueDictionary

import msgspec
from nats.aio.msg import Msg

from slurmbus_agent import budgets
from slurmbus_agent.arrays import task_fields
from slurmbus_agent.audit import Audit
from slurmbus_agent.records import RecordStore
from slurmbus_agent.tasks import spawn
from slurmbus_protocol import codec, reading, subjects
from slurmbus_protocol.arrays import check_tasks, indexes
from slurmbus_protocol.bus import Bus, Stored
from slurmbus_protocol.errors import (
    BadMessage,
    BusFull,
    BusUnreachable,
    InvalidName,
    NotAllowed,
    RequestExpired,
    SlurmbusError,
    WrongAddress,
)
from slurmbus_protocol.messages import Cancel, CancelAsked, Message, Record, Submit
from slurmbus_protocol.signing import TrustedKeys
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import RequestAddress

log = logging.getLogger(__name__)


class Unfollowed(SlurmbusError):
    """There is such a job, but its spool can't be read at present."""

    code = "unfollowed"
    retryable = True


class Accepted(msgspec.Struct, frozen=True):
    """A request that is durable: its records (of an array one for each task), and the bytes that prove its origin."""

    records: tuple[Record, ...]
    submit: Submit
    stored: Stored


class Intake:
    """Pulls the requests of one site.

    Args:
        bus: the connection.
        site: whose requests.
        epoch: the lease under which records are written.
        scheduler: the kind of scheduler, for the records.
        bus_time: the bus's clock, or None when it isn't known.
        keys: whose requests are accepted.
        records: where records are kept.
        audit: where every request is noted.
        accept: takes a new job or array up, and comes back when its spool holds the request.
        cancel: hands a cancel to a job (or one of its tasks) that is being followed, and comes back when it is durable;
            False for none.
        spoiled: called for every bad message.
        array_size: how many tasks Slurm gets as one array.
    """

    def __init__(
        self,
        bus: Bus,
        site: str,
        epoch: int,
        *,
        scheduler: str,
        bus_time: Callable[[], float | None],
        keys: TrustedKeys,
        records: RecordStore,
        audit: Audit,
        accept: Callable[[Accepted], Awaitable[None]],
        cancel: Callable[[str, int | None, CancelAsked], Awaitable[bool]],
        spoiled: Callable[[], None],
        array_size: int = budgets.ARRAY_SIZE,
    ) -> None:
        self._bus = bus
        self._site = site
        self._epoch = epoch
        self._scheduler = scheduler
        self._bus_time = bus_time
        self._keys = keys
        self._records = records
        self._audit = audit
        self._accept = accept
        self._cancel = cancel
        self._spoiled = spoiled
        self._array_size = array_size
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self) -> None:
        """Take requests for ever; lost connections are repaired."""
        gate = asyncio.Semaphore(budgets.INTAKE_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    async for msg in self._requests():
                        await gate.acquire()
                        spawn(group, self._handle_one(msg, gate))
                except BusUnreachable as error:
                    log.info("waiting for requests: %s", error)
                    await asyncio.sleep(1.0)

    def _requests(self) -> AsyncGenerator[Msg]:
        consumer = subjects.consumer(self._site)
        return reading.pull(self._bus, subjects.REQUESTS, consumer, idle_heartbeat=budgets.INTAKE_HEARTBEAT)

    async def _handle_one(self, msg: Msg, gate: asyncio.Semaphore) -> None:
        try:
            await self._handle(reading.stored(msg))
            await self._bus.request(msg.reply, b"+ACK")
        except (BusUnreachable, BusFull, Unfollowed) as error:  # not acknowledged: the bus delivers it again
            log.info("%s will be delivered again: %s", msg.subject, error)
        finally:
            gate.release()

    async def _handle(self, stored: Stored) -> None:
        try:
            address = subjects.parse_request(stored.subject)
        except InvalidName as error:
            self._note("skipped", stored.subject, error=str(error))
            self._spoiled()
            return
        try:
            message = self._checked(stored, address)
        except (BadMessage, NotAllowed) as error:
            self._spoiled()
            self._note("refused", stored.subject, error=error.code, message=error.message)
            if address.control_id is None:
                await self._reject(address, stored, error)
            return
        # A cancel meets an array whole, or not at all yet.
        async with self._locks.setdefault(address.key, asyncio.Lock()):
            if isinstance(message, Submit):
                await self._take(message, stored)
            elif isinstance(message, Cancel):
                await self._take_cancel(message, stored)

    def _checked(self, stored: Stored, address: RequestAddress) -> Message:
        signer = self._keys.verify(stored.subject, stored.data, stored.headers)
        message = codec.decode(stored.data)
        expected: type[Message] = Submit if address.control_id is None else Cancel
        if not isinstance(message, (Submit, Cancel)) or not isinstance(message, expected):
            raise WrongAddress(f"a {message.TYPE} message can't be published on {stored.subject}")
        if message.site != address.site or address.site != self._site:
            raise WrongAddress(f"the request names site {message.site!r}, but was sent to {self._site!r}")
        if message.key != address.key:
            raise WrongAddress(f"the request names job {message.key}, but was sent for {address.key}")
        if message.expires_at < stored.time:
            raise RequestExpired("the request had expired before the bus got it")
        now = self._bus_time()
        if now is not None and message.expires_at < now:
            raise RequestExpired("the request expired before an agent could take it")
        if isinstance(message, Submit):
            check_tasks(message.job)
        self._note("accepted", stored.subject, signer=signer[:16], submitter=message.submitter)
        return message

    async def _take(self, submit: Submit, stored: Stored) -> None:
        job = submit.job
        record = Record(
            key=submit.key,
            site=submit.site,
            epoch=self._epoch,
            state=JobState.ACCEPTED,
            name=job.name,
            submitter=submit.submitter,
            request_sha256=hashlib.sha256(stored.data).hexdigest(),
            created_at=stored.time,
            updated_at=time.time(),
            labels=job.labels,
            trace=job.trace,
            options=job.options,
            requeue=job.options.requeue,
            outputs_pending=bool(job.outputs),
            scheduler=self._scheduler,
            timings={"requested": stored.time, "accepted": time.time()},
        )
        asked = await self._cancelled_before(submit)
        if asked is not None:
            record = msgspec.structs.replace(record, cancel=asked)
        gate = asyncio.Semaphore(budgets.ARRAY_RECORDS_AT_ONCE)

        async def make(task: int) -> Record:
            ours = msgspec.structs.replace(record, **task_fields(job, task, self._array_size))
            async with gate:
                return await self._records.create(ours) or ours

        records = await asyncio.gather(*(make(task) for task in indexes(job)))
        unfinished = tuple(record for record in records if not record.state.is_final)
        if unfinished:
            await self._accept(Accepted(unfinished, submit, stored))
        if asked is not None and any(record.cancel is None for record in unfinished):
            await self._cancel(submit.key, None, asked)

    async def _cancelled_before(self, submit: Submit) -> CancelAsked | None:
        """Tell whether all of an array was cancelled before it came; its task 0 says so, which it need not have."""
        if not submit.job.tasks:
            return None
        there = await self._records.read(submit.key, 0)
        whole = there is not None and there.state is JobState.CANCELLED and not there.tasks
        return there.cancel if there is not None and whole else None

    async def _reject(self, address: RequestAddress, stored: Stored, error: SlurmbusError) -> None:
        now = time.time()
        await self._records.create(
            Record(
                key=address.key,
                site=self._site,
                epoch=self._epoch,
                state=JobState.REJECTED,
                name="unknown",
                submitter="unknown",
                request_sha256=hashlib.sha256(stored.data).hexdigest(),
                created_at=stored.time,
                updated_at=now,
                error_code=error.code,
                reason=error.message,
                hint=error.hint or None,
            )
        )

    async def _take_cancel(self, cancel: Cancel, stored: Stored) -> None:
        asked = CancelAsked(id=cancel.id, at=stored.time, submitter=cancel.submitter, reason=cancel.reason)
        if await self._cancel(cancel.key, cancel.task, asked):
            return
        now = time.time()
        # No such job yet: the record that a late submit then meets.
        there = await self._records.create(
            Record(
                key=cancel.key,
                site=self._site,
                task=cancel.task or 0,
                tasks=0 if cancel.task is None else 1,
                epoch=self._epoch,
                state=JobState.CANCELLED,
                name="unknown",
                submitter=cancel.submitter,
                created_at=stored.time,
                updated_at=now,
                reason=f"cancelled by {cancel.submitter} before it was submitted",
                cancel=asked,
            )
        )
        if there is not None and not there.state.is_final:
            raise Unfollowed(f"job {cancel.key} can't be taken up at present")

    def _note(self, what: str, subject: str, **fields: object) -> None:
        self._audit.write(what, subject=subject, **fields)
