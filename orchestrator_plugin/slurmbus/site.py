"""The asynchronous core of a site's client."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from slurmbus.errors import AmbiguousJob, UnknownJob
from slurmbus.events import AgentStatus, Cursor, Event, TaskEvent
from slurmbus.following import TasksFollower, follow_one
from slurmbus.outbox import SignedRequest
from slurmbus.secret_env import check_secret_names
from slurmbus.session import Session
from slurmbus.snapshot import latest
from slurmbus_protocol import blobs, capabilities, codec, subjects
from slurmbus_protocol.arrays import slurm_id
from slurmbus_protocol.bus import RETRY_DELAYS, Bus, Stored, parse_time
from slurmbus_protocol.errors import (
    BadMessage,
    BusUnreachable,
    InvalidSetting,
    NotRequeueable,
    SiteUnreachable,
    SlurmbusError,
)
from slurmbus_protocol.messages import (
    Cancel,
    Chunk,
    Control,
    FileRef,
    Heartbeat,
    JobSpec,
    Message,
    Problem,
    Record,
    Requeue,
    Sealed,
    Submit,
)
from slurmbus_protocol.reading import read
from slurmbus_protocol.sealing import seal
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid

T = TypeVar("T")
M = TypeVar("M", bound=Message)

log = logging.getLogger(__name__)

SUBMIT_PATIENCE = 30.0  # a bus that is restarted is back within seconds
READ_PATIENCE = 10.0
CANCEL_VALID_FOR = 7 * 86400.0  # an agent that is away for a weekend shall still find it
REQUEUE_VALID_FOR = 600.0  # later it would end a start that nobody meant
KEY_LENGTH = 26
EXPECTED_HINT = "the site's agent writes its record when it runs: see 'slurmbus sites'"


class Site:
    """What can be done with one site; see :class:`slurmbus.client.SiteClient` for the same in plain calls."""

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self.name = subjects.check_token(name, "site")

    # ------------------------------------------------------------------ files

    async def upload(self, path: Path, target: str, executable: bool | None = None) -> FileRef:
        """Put a file on the bus, unless it is there; InvalidSetting when it can't be read."""
        check_target(target)
        try:
            digest, size = await asyncio.to_thread(blobs.hash_file, path)
            if executable is None:
                executable = os.access(path, os.X_OK)
            await self._patiently(lambda: self._put_file(path, digest, size))
            self.session.outbox.keep_file(digest, path)
        except OSError as error:
            raise InvalidSetting(f"the file {path} can't be read: {error.strerror or error}") from error
        return FileRef(path=target, sha256=digest, size=size, executable=executable)

    async def _put_file(self, path: Path, digest: str, size: int) -> None:
        await blobs.put_file(await self.session.blobs(), path, digest, size)

    async def upload_bytes(self, data: bytes, target: str, *, executable: bool = False) -> FileRef:
        """Put bytes on the bus, unless they are there."""
        check_target(target)
        digest = await blobs.put_bytes(await self.session.blobs(), data)
        self.session.outbox.keep_file(digest, data)
        return FileRef(path=target, sha256=digest, size=len(data), executable=executable)

    async def download(self, ref: FileRef, destination: Path) -> Path:
        """Write a blob to a file, verified, all or nothing."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        await self._patiently(lambda: self._fetch(ref, destination))
        return destination

    async def _fetch(self, ref: FileRef, destination: Path) -> None:
        temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
        mode = 0o777 if ref.executable else 0o666
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                await blobs.fetch_into(await self.session.blobs(), ref.sha256, ref.size, file)
            temporary.replace(destination)
        finally:
            temporary.unlink(missing_ok=True)

    # ------------------------------------------------------------------ jobs

    async def submit(
        self,
        job: JobSpec,
        *,
        key: str | None = None,
        valid_for: float = 86400.0,
        secret_env: Mapping[str, str] | None = None,
    ) -> str:
        """Seal what is secret, sign and publish a submission until the bus has it durably."""
        key = key or new_ulid()
        if secret_env:
            job = msgspec.structs.replace(job, sealed=self._seal(secret_env, key))
        await self._check_agent(job)
        message = Submit(key=key, site=self.name, expires_at=time.time() + valid_for, submitter=submitter(), job=job)
        await self._publish(message, SUBMIT_PATIENCE)
        return key

    def _seal(self, secret_env: Mapping[str, str], key: str) -> Sealed:
        check_secret_names(secret_env)
        public = self.session.settings.seal_key_of(self.name)
        return seal(secret_env, public, site=self.name, key=key, signer=self.session.signer.public)

    async def _check_agent(self, job: JobSpec) -> None:
        """Refuse what the site's agent would overlook; one that nobody has heard of yet decides for itself."""
        if not capabilities.needed(job):
            return
        agents = await self.heartbeats()
        if agents:
            capabilities.check(job, agents[0].heartbeat)

    async def cancel(
        self, key: str, reason: str = "", patience: float = SUBMIT_PATIENCE, task: int | None = None
    ) -> str:
        """Ask durably for the job's end, or for that of one task; give the id of this wish."""
        message = Cancel(
            id=new_ulid(),
            key=key,
            site=self.name,
            expires_at=time.time() + CANCEL_VALID_FOR,
            submitter=submitter(),
            reason=reason,
            task=task,
        )
        await self._publish(message, patience)
        return message.id

    async def requeue(
        self, key: str, reason: str = "", patience: float = SUBMIT_PATIENCE, task: int | None = None
    ) -> str:
        """Ask durably for another start of the running job, or of one task; give the id of this wish."""
        record = await self.record(key, task or 0)
        if record is not None and record.state.is_final:
            raise NotRequeueable(f"job {key} has ended: {record.state}", hint="submit it again")
        agents = await self.heartbeats()
        if agents:
            capabilities.check_requeue(agents[0].heartbeat)
        message = Requeue(
            id=new_ulid(),
            key=key,
            site=self.name,
            expires_at=time.time() + REQUEUE_VALID_FOR,
            submitter=submitter(),
            reason=reason,
            task=task,
        )
        await self._publish(message, patience)
        return message.id

    async def _publish(self, message: Submit | Control, patience: float) -> None:
        request = SignedRequest.of(message, self.session.signer)
        bus = await self._bus()
        outbox = self.session.outbox
        before = outbox.keep(request)  # already now: the bus may start anew while it says yes
        try:
            await request.publish(bus, patience)
        except BaseException:  # the caller knows that it failed, and won't expect it to happen after all
            outbox.drop(request)
            if before is not None:
                outbox.keep(before)
            raise

    async def record(self, key: str, task: int = 0) -> Record | None:
        """Read a job's record, or None when no agent has taken it yet."""
        subject = subjects.state(self.name, key, task)
        found = await self._patiently(lambda: self._last(subjects.STATES, subject))
        return codec.decode_as(found, Record) if found is not None else None

    async def _last(self, stream: str, subject: str) -> bytes | None:
        found = await (await self._bus()).last(stream, subject)
        return found.data if found is not None else None

    async def records(self, limit: int | None = None) -> list[Record]:
        """Read the newest records of the site, newest first."""
        pattern = f"{subjects.PREFIX}.{self.name}.job.*.*.state"
        found, _ = await self._patiently(lambda: self._latest(subjects.STATES, [pattern]))
        found.sort(key=lambda item: item.subject, reverse=True)  # ULIDs sort by the time they were made
        return list(islice(_records(found), limit))

    async def task_records(self, key: str) -> dict[int, Record]:
        """Read the records of an array's tasks, by their numbers; a single job is task 0."""
        pattern = f"{subjects.PREFIX}.{self.name}.job.{subjects.check_key(key)}.*.state"
        found, _ = await self._patiently(lambda: self._latest(subjects.STATES, [pattern]))
        return {record.task: record for record in _records(found)}

    async def is_expected(self, key: str) -> bool:
        """Tell whether a job without a record may get one: its request waits, or the bus is younger than the job."""
        if await self._patiently(lambda: self._last(subjects.REQUESTS, subjects.request(self.name, key))) is not None:
            return True
        bus = await self._bus()
        info = await self._patiently(lambda: bus.api(f"STREAM.INFO.{subjects.REQUESTS}"))
        return parse_time(str(info["created"])) > subjects.ulid_time(key)

    async def find(self, text: str) -> Record:
        """Find the job whose key is or begins with ``text``, or whose Slurm id it is."""
        wanted = text.strip().upper()
        if len(wanted) == KEY_LENGTH:
            record = await self.record(subjects.check_key(wanted))
            if record is None:
                hint = EXPECTED_HINT if await self.is_expected(wanted) else None
                raise UnknownJob(f"site {self.name} has no job {wanted}", hint=hint)
            return record
        records = await self.records()
        fitting = [record for record in records if record.key.startswith(wanted)]
        if wanted[:1] in "123456789":  # ids are recycled by Slurm: the newest job is meant
            fitting = [record for record in records if wanted in _slurm_ids(record)][:1] or fitting
        if not wanted or not fitting:
            raise UnknownJob(f"site {self.name} has no job {text!r}")
        keys = sorted({record.key for record in fitting})
        if len(keys) > 1:
            raise AmbiguousJob(f"{text!r} fits {len(keys)} jobs: {', '.join(keys[:5])}{', …' if keys[5:] else ''}")
        return fitting[0]

    async def wait_for_accounting(self, key: str, timeout: float, task: int = 0) -> Record:
        """Wait until the record carries accounting's figures; after ``timeout`` seconds give it as it is.

        Accounting knows nothing of a rejected job, so nobody waits for that.
        """
        record: Record | None = None
        bus = await self._bus()
        try:
            async with (
                asyncio.timeout(timeout),
                aclosing(read(bus, subjects.STATES, [subjects.state(self.name, key, task)])) as items,
            ):
                async for item in items:
                    record = codec.decode_as(item.data, Record)
                    if record.accounting is not None or record.state is JobState.REJECTED:
                        break
        except TimeoutError:
            pass
        if record is None:
            raise UnknownJob(f"site {self.name} has no job {key}")
        return record

    def follow(
        self, key: str, *, task: int = 0, streams: bool = True, after: Cursor | None = None, patience: float = 5.0
    ) -> AsyncGenerator[Event]:
        """Give a job's events until Finished; close it (``aclosing``) when stopping earlier."""
        return follow_one(self, subjects.check_key(key), task, streams=streams, after=after, patience=patience)

    def follow_tasks(
        self,
        tasks: Mapping[str, Collection[int]],
        *,
        streams: bool = True,
        after: Mapping[tuple[str, int], Cursor] | None = None,
        patience: float = 5.0,
    ) -> AsyncGenerator[TaskEvent]:
        """Give the events of many tasks until each has ended; close it (``aclosing``) when stopping earlier."""
        for key in tasks:
            subjects.check_key(key)
        return TasksFollower(self, tasks, streams=streams, after=after, patience=patience).events()

    async def ends(self, key: str, task: int = 0) -> Cursor:
        """Tell up to where the bus holds stdout and stderr of each start."""
        pattern = f"{subjects.PREFIX}.{self.name}.log.{subjects.check_key(key)}.{task}.>"
        found, _ = await self._patiently(lambda: self._latest(subjects.LOGS, [pattern]))
        ends: dict[tuple[int, subjects.Stream], int] = {}
        for item in found:
            address, chunk = subjects.parse_stream(item.subject), codec.decode_as(item.data, Chunk)
            ends[address.start, address.stream] = chunk.offset + len(chunk.data)
        return ends

    # ------------------------------------------------------------------ the agent

    async def heartbeats(self) -> list[AgentStatus]:
        """Read the heartbeats of the site's agents, the leader's first."""
        return await self._patiently(self.heartbeats_now)

    async def heartbeats_now(self) -> list[AgentStatus]:
        """Read the heartbeats; BusUnreachable at once when the bus is away."""
        lease = subjects.lease(self.name)
        found, now = await self._latest(f"KV_{subjects.AGENTS_BUCKET}", [lease, f"{lease}.*"])
        found.sort(key=lambda item: item.subject)
        return list(_agents(found, now))

    async def _latest(self, stream: str, filters: Sequence[str]) -> tuple[list[Stored], float]:
        return await latest(await self._bus(), stream, filters)

    async def ask(
        self, verb: str, message: Message, answer: type[M], timeout: float = 5.0, *, signed: bool = False
    ) -> M:
        """Ask the site's agent something that may fail."""
        bus = await self._bus()
        subject, body = subjects.rpc(self.name, verb), codec.encode(message)
        headers = self.session.signer.headers(subject, body) if signed else None
        try:
            msg = await bus.request(subject, body, headers=headers, timeout=timeout)
        except BusUnreachable as error:
            if await bus.probe():
                raise SiteUnreachable(f"no agent of site {self.name} answers{await self._last_seen()}") from error
            raise
        reply = codec.decode(msg.data)
        if isinstance(reply, Problem):
            raise problem_error(reply)
        return codec.decode_as(msg.data, answer)

    async def _last_seen(self) -> str:
        agents = await self.heartbeats_now()
        if not agents:
            return ", none ever has"
        last = agents[0]
        return f"; the last heartbeat, from {last.heartbeat.host}, is {last.age:.0f} s old"

    async def _bus(self) -> Bus:
        return await self.session.site_bus(self.name)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again for READ_PATIENCE seconds when a bus that was there goes away."""
        await self._bus()
        deadline = time.monotonic() + READ_PATIENCE
        tries = 0
        while True:
            try:
                return await attempt()
            except BusUnreachable:
                delay = RETRY_DELAYS[min(tries, len(RETRY_DELAYS) - 1)]
                tries += 1
                if time.monotonic() + delay > deadline:
                    raise
                await asyncio.sleep(delay)


def _slurm_ids(record: Record) -> set[str]:
    """Give the ids by which Slurm's commands know a job: of an array's task 12_3, its own, and the array's."""
    own = str(record.task_job_id) if record.task_job_id is not None else ""
    return {slurm_id(record), own, str(record.job_id) if record.job_id is not None else ""} - {""}


def _records(found: Iterable[Stored]) -> Iterator[Record]:
    """Give the records that this version can read: one of a newer agent doesn't hide the others."""
    for item in found:
        try:
            yield codec.decode_as(item.data, Record)
        except BadMessage as error:
            log.warning("the record on %s is left out: %s", item.subject, error)


def _agents(found: Iterable[Stored], now: float) -> Iterator[AgentStatus]:
    for item in found:
        try:
            yield AgentStatus(codec.decode_as(item.data, Heartbeat), max(0.0, now - item.time))
        except BadMessage as error:
            log.warning("the heartbeat on %s is left out: %s", item.subject, error)


def submitter() -> str:
    """Say who submits from where."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def problem_error(problem: Problem) -> SlurmbusError:
    """Turn an error that crossed the bus back into its class; of an unknown code it is a plain SlurmbusError."""
    kind = _error_classes().get(problem.code, SlurmbusError)
    return kind(problem.message, hint=problem.hint)


@cache
def _error_classes() -> dict[str, type[SlurmbusError]]:
    found: dict[str, type[SlurmbusError]] = {}
    pending = [SlurmbusError]
    while pending:
        kind = pending.pop()
        if kind.__module__ == SlurmbusError.__module__:
            found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return found


def check_target(target: str) -> None:
    """Raise InvalidSetting when a path leaves the folder that it counts from."""
    path = PurePosixPath(target)
    if not target or path.is_absolute() or ".." in path.parts:
        raise InvalidSetting(f"{target!r} leaves the job's working directory", hint="use a relative path without '..'")
