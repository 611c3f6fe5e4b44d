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
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec
from nats.aio.msg import Msg

from slurmbus_agent import budgets
from slurmbus_agent.arrays import task_fields
from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.expiry import Expiry
from slurmbus_agent.authority.standing import Authority
from slurmbus_agent.records import RecordStore
from slurmbus_agent.sizes import check_sizes
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
from slurmbus_protocol.messages import (
    Cancel,
    CancelAsked,
    Control,
    ControlRefused,
    JobOptions,
    Record,
    Requeue,
    RequeueAsked,
    Submit,
)
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import RequestAddress

log = logging.getLogger(__name__)


class Controls(Protocol):
    """The jobs that are followed, as far as controls go; of an array ``task`` None is all tasks."""

    async def cancel(self, key: str, task: int | None, asked: CancelAsked) -> bool:
        """Ask for the end of a job, and come back when that is durable; False when there is no such job."""
        ...

    async def requeue(self, key: str, task: int | None, asked: RequeueAsked) -> bool:
        """Ask for another start of a job, and come back when that or its refusal is durable; False without a job."""
        ...

    async def owner(self, key: str, task: int | None) -> str | None:
        """Give the public key that signed the request of a job; None when there is no such job."""
        ...

    async def refuse_control(self, key: str, task: int | None, refused: ControlRefused) -> None:
        """Note with a job that a control of it was refused."""
        ...


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
        authority: whose requests are accepted, and which.
        records: where records are kept.
        audit: where every request is noted.
        accept: takes a new job or array up, and comes back when its spool holds the request.
        controls: hands controls to the jobs that they are for.
        unfinished: the (key, task) of every job that is followed and hasn't ended.
        spoiled: called for every bad message.
        array_size: how many tasks Slurm gets as one array.
        clock: this host's time of day.
    """

    def __init__(
        self,
        bus: Bus,
        site: str,
        epoch: int,
        *,
        scheduler: str,
        bus_time: Callable[[], float | None],
        authority: Authority,
        records: RecordStore,
        audit: Audit,
        accept: Callable[[Accepted], Awaitable[None]],
        controls: Controls,
        unfinished: Callable[[], set[tuple[str, int]]],
        spoiled: Callable[[], None],
        array_size: int = budgets.ARRAY_SIZE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._site = site
        self._epoch = epoch
        self._scheduler = scheduler
        self._expiry = Expiry(bus_time, clock)
        self._authority = authority
        self._records = records
        self._audit = audit
        self._accept = accept
        self._controls = controls
        self._unfinished = unfinished
        self._arriving: set[tuple[str, int]] = set()
        """Jobs that were let in and may not be followed yet."""
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
        await self._authority.freshen()
        try:
            message, signer = self._checked(stored, address)
        except (BadMessage, NotAllowed) as error:
            self._spoiled()
            self._note("refused", stored.subject, error=error.code, message=error.message)
            if address.control_id is None:
                await self._reject(address, stored, error)
            else:
                await self._controls.refuse_control(
                    address.key, None, _refused(address.control_id, stored, "unknown", error)
                )
            return
        # A cancel meets an array whole, or not at all yet.
        async with self._locks.setdefault(address.key, asyncio.Lock()):
            if isinstance(message, Submit):
                await self._take_allowed(message, stored, signer)
            elif not await self._may_control(message, stored, signer):
                return
            elif isinstance(message, Cancel):
                await self._take_cancel(message, stored, signer)
            else:
                await self._take_requeue(message, stored)

    def _checked(self, stored: Stored, address: RequestAddress) -> tuple[Submit | Control, str]:
        signer = self._authority.verify(stored.subject, stored.data, stored.headers)
        message = codec.decode(stored.data)
        if not isinstance(message, Submit | Control) or isinstance(message, Submit) != (address.control_id is None):
            raise WrongAddress(f"a {message.TYPE} message can't be published on {stored.subject}")
        if message.site != address.site or address.site != self._site:
            raise WrongAddress(f"the request names site {message.site!r}, but was sent to {self._site!r}")
        if message.key != address.key:
            raise WrongAddress(f"the request names job {message.key}, but was sent for {address.key}")
        if message.expires_at < stored.time:
            raise RequestExpired("the request had expired before the bus got it")
        check_sizes(message)
        if isinstance(message, Submit):
            check_tasks(message.job)
        else:
            self._expiry.check(message.expires_at)
        return message, signer

    async def _take_allowed(self, submit: Submit, stored: Stored, signer: str) -> None:
        """Take a job if time, authority and policy allow it; what was let in before stays so when it comes again."""
        if submit.job.tasks and await self._refused_before(submit.key):
            self._note("refused", stored.subject, signer=signer, message="it was refused before")
            return
        names = {(submit.key, task) for task in indexes(submit.job)}
        real = await self._authority.real_folders(submit)
        try:
            self._expiry.check(submit.expires_at)
            # From here until these jobs are noted as arriving it is nobody else's turn.
            self._authority.check_submit(
                submit, signer, lambda: len((self._unfinished() | self._arriving) - names), real
            )
        except NotAllowed as error:
            if await self._records.read(submit.key, min(indexes(submit.job))) is None:
                self._note("refused", stored.subject, signer=signer, error=error.code, message=error.message)
                address = RequestAddress(submit.site, submit.key, None)
                await self._reject(address, stored, error, submit)
                return
        self._note("accepted", stored.subject, signer=signer, submitter=submit.submitter)
        self._arriving |= names
        try:
            await self._take(submit, stored, signer)
        finally:
            self._arriving -= names

    async def _refused_before(self, key: str) -> bool:
        """Tell whether an array was refused as a whole: its submitter may know that, whatever is allowed by now."""
        there = await self._records.read(key, 0)
        return there is not None and there.state is JobState.REJECTED and not there.tasks

    async def _take(self, submit: Submit, stored: Stored, signer: str) -> None:
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
            signer=signer,
        )
        asked = await self._cancelled_before(submit, signer)
        if asked is not None:
            record = msgspec.structs.replace(record, cancel=asked)
        gate = asyncio.Semaphore(budgets.ARRAY_RECORDS_AT_ONCE)

        async def make(task: int) -> Record:
            ours = msgspec.structs.replace(record, **task_fields(job, task, self._array_size))
            async with gate:
                there = await self._records.create(ours)
                if there is not None and self._is_foreign_cancel(there, signer):
                    return await self._records.write(ours)
                return there or ours

        records = await asyncio.gather(*(make(task) for task in indexes(job)))
        if any(there.request_sha256 not in {"", record.request_sha256} for there in records):
            self._note("refused", stored.subject, signer=signer, error="other-request", message="the job key is taken")
            return
        unfinished = tuple(record for record in records if not record.state.is_final)
        if unfinished:
            await self._accept(Accepted(unfinished, submit, stored))
        if asked is not None and any(record.cancel is None for record in unfinished):
            await self._controls.cancel(submit.key, None, asked)

    def _is_foreign_cancel(self, there: Record, signer: str) -> bool:
        """Tell whether a record is but the cancel, before the job came, by somebody who may not cancel it."""
        before_the_job = there.state is JobState.CANCELLED and not there.request_sha256
        if not before_the_job or not there.signer:
            return False
        try:
            self._authority.check_control(there.signer, signer)
        except NotAllowed:
            return True
        return False

    async def _cancelled_before(self, submit: Submit, signer: str) -> CancelAsked | None:
        """Tell whether all of an array was cancelled before it came; its task 0 says so, which it need not have."""
        if not submit.job.tasks:
            return None
        there = await self._records.read(submit.key, 0)
        whole = there is not None and there.state is JobState.CANCELLED and not there.tasks
        return there.cancel if there is not None and whole and not self._is_foreign_cancel(there, signer) else None

    async def _reject(
        self, address: RequestAddress, stored: Stored, error: SlurmbusError, submit: Submit | None = None
    ) -> None:
        now = time.time()
        await self._records.create(
            Record(
                key=address.key,
                site=self._site,
                epoch=self._epoch,
                state=JobState.REJECTED,
                name=submit.job.name if submit else "unknown",
                submitter=submit.submitter if submit else "unknown",
                labels=submit.job.labels if submit else {},
                options=submit.job.options if submit else JobOptions(),
                request_sha256=hashlib.sha256(stored.data).hexdigest(),
                created_at=stored.time,
                updated_at=now,
                error_code=error.code,
                reason=error.message,
                hint=error.hint or None,
            )
        )

    async def _may_control(self, control: Control, stored: Stored, signer: str) -> bool:
        """Compare who asks with whose job it is, if there is one."""
        owner = await self._controls.owner(control.key, control.task)
        if owner is not None:
            try:
                self._authority.check_control(signer, owner)
            except NotAllowed as error:
                self._note("refused", stored.subject, signer=signer, error=error.code, message=error.message)
                await self._controls.refuse_control(
                    control.key, control.task, _refused(control.id, stored, control.submitter, error)
                )
                return False
        self._note("accepted", stored.subject, signer=signer, submitter=control.submitter)
        return True

    async def _take_requeue(self, requeue: Requeue, stored: Stored) -> None:
        asked = RequeueAsked(id=requeue.id, at=stored.time, submitter=requeue.submitter, reason=requeue.reason)
        if await self._controls.requeue(requeue.key, requeue.task, asked):
            return
        there = await self._records.read(requeue.key, requeue.task or 0)
        if there is not None and not there.state.is_final:
            raise Unfollowed(f"job {requeue.key} can't be taken up at present")
        self._note("refused", stored.subject, message="there is no such job that runs")

    async def _take_cancel(self, cancel: Cancel, stored: Stored, signer: str) -> None:
        asked = CancelAsked(id=cancel.id, at=stored.time, submitter=cancel.submitter, reason=cancel.reason)
        if await self._controls.cancel(cancel.key, cancel.task, asked):
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
                signer=signer,
            )
        )
        if there is not None and not there.state.is_final:
            raise Unfollowed(f"job {cancel.key} can't be taken up at present")

    def _note(self, what: str, subject: str, **fields: object) -> None:
        self._audit.write(what, subject=subject, **fields)


def _refused(control_id: str, stored: Stored, submitter: str, error: NotAllowed | BadMessage) -> ControlRefused:
    return ControlRefused(
        id=control_id, at=stored.time, submitter=submitter, code=error.code, message=error.message, hint=error.hint
    )
