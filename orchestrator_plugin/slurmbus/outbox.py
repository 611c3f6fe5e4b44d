"""Requests that the bus has and that no agent is known to have made durable.

A bus that starts anew has lost them: they are published again, with the same bytes and the same signature, and the
files that they name are uploaded again. That is always safe: the first one with a key counts, and a request that has
expired runs no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from slurmbus_protocol import blobs, codec, subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import BlobCorrupt, BusFull
from slurmbus_protocol.messages import Control, EnvironmentRef, FileRef, Record, Requeue, Submit
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.states import JobState

log = logging.getLogger(__name__)

LIMIT = 64 * 1024 * 1024
"""Bytes that are kept at most, requests and files made in memory together; the oldest ones go first."""
_UNTIL_STAGED = {JobState.ACCEPTED, JobState.STAGING}
"""In these states the agent has the request, and still needs the files that the bus holds for it."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it is published, again and again if it must be."""

    subject: str
    body: bytes
    headers: dict[str, str]
    message: Submit | Control

    @classmethod
    def of(cls, message: Submit | Control, signer: Signer) -> Self:
        """Encode and sign a request; TooLarge when it is too big for the bus."""
        if isinstance(message, Submit):
            subject = subjects.request(message.site, message.key)
        else:
            subject = subjects.control(message.site, message.key, message.id)
        body = codec.encode(message)
        return cls(subject, body, signer.headers(subject, body), message)

    @property
    def files(self) -> tuple[FileRef, ...]:
        """The files that have to be on the bus."""
        if not isinstance(self.message, Submit):
            return ()
        job = self.message.job
        files = (*job.files, *(file for task in job.tasks for file in task.files))
        return (*files, job.pipes_module) if job.pipes_module is not None else files

    async def publish(self, bus: Bus, patience: float) -> None:
        """Publish it until the bus has acknowledged it; nothing happens when it is there.

        Raises:
            BusFull: the bus takes no requests.
            BusUnreachable: it isn't known whether the bus has it.
        """
        try:
            await bus.publish_until_acknowledged(
                self.subject, self.body, headers=self.headers, expected_last=0, patience=patience
            )
        except BusFull as error:
            raise BusFull(
                f"stream {subjects.REQUESTS} of the bus is full and takes no new requests",
                hint=f"let the site's agent forget old jobs, or give the stream more room with "
                f"'nats stream edit {subjects.REQUESTS} --max-bytes=SIZE'",
            ) from error


class Outbox:
    """What one process has published and may have to publish again."""

    def __init__(self) -> None:
        self._requests: dict[str, SignedRequest] = {}
        self._files: dict[str, Path | bytes] = {}
        self._environments: dict[str, tuple[FileRef, ...]] = {}
        self._size = 0

    def keep(self, request: SignedRequest) -> SignedRequest | None:
        """Keep a request until :meth:`seen` tells that it needn't be kept; give the one that was kept in its place."""
        before = self._requests.get(request.subject)
        self.drop(request)
        self._requests[request.subject] = request
        self._size += len(request.body)
        self._make_room()
        return before

    def drop(self, request: SignedRequest) -> None:
        """Forget a request."""
        if (kept := self._requests.pop(request.subject, None)) is not None:
            self._size -= len(kept.body)

    def keep_file(self, digest: str, source: Path | bytes) -> None:
        """Remember where the bytes of a file come from."""
        self._drop_file(digest)
        self._files[digest] = source if isinstance(source, bytes) else source.absolute()
        self._size += _held(source)
        self._make_room()

    def keep_environment(self, ref: EnvironmentRef, files: Mapping[str, int]) -> None:
        """Remember which files an environment consists of, by their hashes and sizes; its manifest is one more."""
        self._environments[ref.digest] = tuple(
            FileRef(path=digest, sha256=digest, size=size) for digest, size in {**files, ref.digest: ref.size}.items()
        )

    def _files_of(self, request: SignedRequest) -> tuple[FileRef, ...]:
        message = request.message
        environment = message.job.environment if isinstance(message, Submit) else None
        if not isinstance(environment, EnvironmentRef):
            return request.files
        return (*request.files, *self._environments.get(environment.digest, ()))

    def _drop_file(self, digest: str) -> None:
        if (source := self._files.pop(digest, None)) is not None:
            self._size -= _held(source)

    def seen(self, record: Record) -> None:
        """Forget what the agent has made durable: a job past its staging, the cancel of one that ended, a requeue."""
        for request in self.of_job(record.site, record.key):
            # Of an array others may still be staged, or need their cancel: the agent's spool has the request by now.
            staged = isinstance(request.message, Submit) and record.state not in _UNTIL_STAGED and not record.tasks
            ended = record.state.is_final and (isinstance(request.message, Submit) or not record.tasks)
            answered = not isinstance(request.message, Submit) and _is_answered(record, request.message)
            if staged or ended or answered:
                self.drop(request)

    def holds(self, request: SignedRequest) -> bool:
        """Tell whether a request is still kept."""
        return self._requests.get(request.subject) is request

    def of_job(self, site: str, key: str) -> list[SignedRequest]:
        """Give what is kept for one job."""
        return [
            request
            for request in self._requests.values()
            if request.message.key == key and request.message.site == site
        ]

    def all(self) -> list[SignedRequest]:
        """Give what is kept and may still be taken by an agent, oldest first."""
        now = time.time()
        for request in list(self._requests.values()):
            if request.message.expires_at < now:
                self.drop(request)
        return list(self._requests.values())

    async def publish(self, request: SignedRequest, bus: Bus, blob_bus: Callable[[], Awaitable[Bus]]) -> None:
        """Publish a request again, after the files that it needs.

        Raises:
            BusFull: the bus takes no more.
            BusUnreachable: it doesn't answer.
        """
        for ref in self._files_of(request):
            source = self._files.get(ref.sha256)
            if source is None:
                continue
            try:
                if isinstance(source, bytes):
                    await blobs.put_bytes(await blob_bus(), source)
                else:
                    await blobs.put_file(await blob_bus(), source, ref.sha256, ref.size)
            except (OSError, BlobCorrupt) as error:
                log.warning("job %s: %s can't be uploaded again: %s", request.message.key, ref.path, error)
        await request.publish(bus, patience=0.0)

    def _make_room(self) -> None:
        while self._size > LIMIT and self._files:
            self._drop_file(next(iter(self._files)))
        while self._size > LIMIT and self._requests:
            self.drop(next(iter(self._requests.values())))


def _held(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else len(str(source))


def _is_answered(record: Record, control: Control) -> bool:
    refused = record.refused is not None and record.refused.id == control.id
    return refused or (isinstance(control, Requeue) and any(one.id == control.id for one in record.requeues))
