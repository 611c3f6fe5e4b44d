"""A site's client for callers that aren't asynchronous: submit, follow, cancel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from slurmbus.connection import Connection
from slurmbus.events import AgentStatus, Cursor, Event
from slurmbus_protocol.messages import FileRef, JobSpec, Message, Record

M = TypeVar("M", bound=Message)


class Following(Iterator[Event]):
    """The events of one job, in order; a context manager.

    A call may be interrupted (KeyboardInterrupt, Dagster's interrupts) and made again: no event gets lost.
    """

    def __next__(self) -> Event:
        """Wait for the next event; StopIteration after Finished."""
        raise NotImplementedError

    def wait(self, timeout: float) -> Event | None:
        """Wait at most ``timeout`` seconds for the next event; None when none came (or after Finished)."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop following; the job goes on."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Follow."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop following; the job goes on."""
        self.close()


class SiteClient:
    """What can be done with one site. Safe to use from several threads, and after a fork."""

    def __init__(self, connection: Connection, site: str) -> None:
        self.connection = connection
        self.site = site

    def upload(self, path: Path, target: str, *, executable: bool | None = None) -> FileRef:
        """Put a file on the bus, unless it is there, and give the reference for ``JobSpec.files``.

        Args:
            path: the file here.
            target: where it goes, relative to the job's working directory.
            executable: None takes what the file here is.
        """
        raise NotImplementedError

    def upload_bytes(self, data: bytes, target: str, *, executable: bool = False) -> FileRef:
        """Put bytes on the bus, unless they are there, and give the reference."""
        raise NotImplementedError

    def download(self, ref: FileRef, destination: Path) -> Path:
        """Write a file that came back to ``destination`` (a file's path), verified, all or nothing."""
        raise NotImplementedError

    def submit(self, job: JobSpec, *, key: str | None = None, valid_for: float = 86400.0) -> str:
        """Sign and publish a submission until the bus has it durably, and give the job's key.

        Safe to repeat with the same key: the first one counts.

        Raises:
            TooLarge: the request is too big; ship data as files.
            BusFull: the bus takes no new requests.
            BusUnreachable: it may or may not have been stored: repeat with the same key.
        """
        raise NotImplementedError

    def record(self, key: str, task: int = 0) -> Record | None:
        """Read a job's record, or None when no agent has taken it yet."""
        raise NotImplementedError

    def records(self, limit: int | None = None) -> list[Record]:
        """Read the newest ``limit`` records of the site, newest first."""
        raise NotImplementedError

    def find(self, text: str) -> Record:
        """Find the job whose key is or begins with ``text``, or whose Slurm id it is.

        Raises:
            UnknownJob: there is none.
            AmbiguousJob: there are several.
        """
        raise NotImplementedError

    def heartbeats(self) -> list[AgentStatus]:
        """Read the heartbeats of the site's agents, the leader's first."""
        raise NotImplementedError

    def follow(
        self, key: str, *, task: int = 0, streams: bool = True, after: Cursor | None = None, patience: float = 5.0
    ) -> Following:
        """Follow a job from its first event (or byte) to its last.

        Ends with Finished, exactly when the record is final and every byte up to ``record.starts[n].sizes`` was given.

        Args:
            key: the job.
            task: of a job array.
            streams: also give the output and the Pipes messages.
            after: bytes of each (start, stream) that aren't wanted again.
            patience: seconds without any event after which a Waiting is given; the next ones come ever more rarely.

        Raises:
            LostMessages: (while iterating) bytes of the Pipes messages are gone everywhere.
        """
        raise NotImplementedError

    def wait_for_accounting(self, key: str, timeout: float, task: int = 0) -> Record:
        """Wait until the record carries accounting's figures; after ``timeout`` seconds give it as it is.

        Raises:
            UnknownJob: there is no record.
        """
        raise NotImplementedError

    def cancel(self, key: str, reason: str = "") -> None:
        """Ask durably for the job's end; returns when the bus has the request."""
        raise NotImplementedError

    def ask(self, verb: str, message: Message, answer: type[M], timeout: float = 5.0) -> M:
        """Ask the site's agent something that may fail.

        Raises:
            SiteUnreachable: no agent answers.
            SlurmbusError: what the agent answered, as the error class of its code.
        """
        raise NotImplementedError
