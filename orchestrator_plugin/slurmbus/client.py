"""A site's client for callers that aren't asynchronous: submit, follow, cancel."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from slurmbus.connection import Connection
from slurmbus.events import AgentStatus, Cursor, Event, Finished, TaskEvent
from slurmbus.site import SUBMIT_PATIENCE, Site
from slurmbus_protocol import subjects
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.messages import FileRef, JobSpec, Message, Record

T = TypeVar("T")
E = TypeVar("E")
M = TypeVar("M", bound=Message)

_CLOSE_TIMEOUT = 5.0


class _Following(Iterator[E]):
    """Events in order; a context manager.

    A call may be interrupted (KeyboardInterrupt, Dagster's interrupts) and made again: no event gets lost. Nothing is
    fetched far ahead of a slow caller.
    """

    def __init__(self, connection: Connection, events: AsyncGenerator[E]) -> None:
        self._connection = connection
        self._pump = _Pump(events)
        self._next: concurrent.futures.Future[E | None] | None = None
        self._ended = False

    def _is_last(self, event: E) -> bool:
        """Tell whether nothing follows."""
        raise NotImplementedError

    def __next__(self) -> E:
        """Wait for the next event; StopIteration after the last."""
        event = self._wait(None)
        if event is None:
            raise StopIteration
        return event

    def wait(self, timeout: float) -> E | None:
        """Wait at most ``timeout`` seconds for the next event; None when none came (or after the last)."""
        return self._wait(timeout)

    def _wait(self, timeout: float | None) -> E | None:
        if self._ended:
            return None
        if self._next is None:
            self._next = self._connection.start(self._pump.next())
        concurrent.futures.wait([self._next], timeout)
        if not self._next.done():
            return None
        done, self._next = self._next, None
        self._ended = True  # unless it turns out that it goes on
        try:
            event = done.result()
        except concurrent.futures.CancelledError:
            event = None
        if event is None:
            raise BusUnreachable("the connection was closed while the job was followed", hint="follow it again")
        self._ended = self._is_last(event)
        return event

    def close(self) -> None:
        """Stop following; the job goes on."""
        if not self._ended and self._connection.is_open:
            concurrent.futures.wait([self._connection.start(self._pump.close())], _CLOSE_TIMEOUT)
        self._ended = True

    def __enter__(self) -> Self:
        """Follow."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop following; the job goes on."""
        self.close()

    def __del__(self) -> None:
        """Stop following when it was forgotten; in a forked child it is the parent's affair."""
        if not self._ended and self._next is not None and self._connection.is_open:
            self._connection.start(self._pump.close())


class Following(_Following[Event]):
    """The events of one job, which end with Finished."""

    def _is_last(self, event: Event) -> bool:
        return isinstance(event, Finished)


class FollowingTasks(_Following[TaskEvent]):
    """The events of many tasks, which end when each has had its Finished."""

    def __init__(self, connection: Connection, events: AsyncGenerator[TaskEvent], count: int) -> None:
        super().__init__(connection, events)
        self._left = count
        self._ended = count == 0

    def _is_last(self, event: TaskEvent) -> bool:
        self._left -= isinstance(event.event, Finished)
        return self._left == 0


class _Pump(Generic[E]):
    """Takes events one by one, on the connection's loop."""

    def __init__(self, events: AsyncGenerator[E]) -> None:
        self._events = events
        self._task: asyncio.Task[Any] | None = None

    async def next(self) -> E | None:
        self._task = asyncio.current_task()
        return await anext(self._events, None)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._events.aclose()


class SiteClient:
    """What can be done with one site. Safe to use from several threads, and after a fork."""

    def __init__(self, connection: Connection, site: str) -> None:
        self.connection = connection
        self.site = subjects.check_token(site, "site")

    @property
    def core(self) -> Site:
        """The asynchronous client, for coroutines on the connection's loop."""
        return Site(self.connection.session, self.site)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.connection.run(coroutine)

    def _run_telling(self, coroutine: Coroutine[Any, Any, T], tell: Callable[[str], None] | None) -> T:
        if tell is None:
            return self._run(coroutine)

        def slow() -> None:
            why = self.connection.session.problem
            tell(f"the bus hasn't acknowledged the request yet{f' ({why})' if why else ''}")

        return self.connection.run(coroutine, slow=slow)

    def upload(self, path: Path, target: str, *, executable: bool | None = None) -> FileRef:
        """Put a file on the bus, unless it is there, and give the reference for ``JobSpec.files``.

        Args:
            path: the file here.
            target: where it goes, relative to the job's working directory.
            executable: None takes what the file here is.
        """
        return self._run(self.core.upload(path, target, executable))

    def upload_bytes(self, data: bytes, target: str, *, executable: bool = False) -> FileRef:
        """Put bytes on the bus, unless they are there, and give the reference."""
        return self._run(self.core.upload_bytes(data, target, executable=executable))

    def download(self, ref: FileRef, destination: Path) -> Path:
        """Write a file that came back to ``destination`` (a file's path), verified, all or nothing."""
        return self._run(self.core.download(ref, destination))

    def submit(
        self,
        job: JobSpec,
        *,
        key: str | None = None,
        valid_for: float = 86400.0,
        tell: Callable[[str], None] | None = None,
        secret_env: Mapping[str, str] | None = None,
    ) -> str:
        """Sign and publish a submission until the bus has it durably, and give the job's key.

        Safe to repeat with the same key: the first one counts. It is accepted when its record exists; until then this
        process publishes it again should the bus start anew.

        Args:
            job: what shall run.
            key: the job's key; None makes one.
            valid_for: seconds in which an agent has to take it.
            tell: called with what is being waited for, should it take long.
            secret_env: variables of the job that nobody but it and the site's agent shall read.

        Raises:
            InvalidSetting: no key is known to which secret variables could be sealed.
            AgentTooOld: the site's agent would overlook a part of the request.
            TooLarge: the request is too big; ship data as files.
            BusFull: the bus takes no new requests.
            BusRefused: the bus doesn't let this user publish requests.
            BusUnreachable: it may or may not have been stored: repeat with the same key.
        """
        return self._run_telling(self.core.submit(job, key=key, valid_for=valid_for, secret_env=secret_env), tell)

    def record(self, key: str, task: int = 0) -> Record | None:
        """Read a job's record, or None when no agent has taken it yet."""
        return self._run(self.core.record(key, task))

    def task_records(self, key: str) -> dict[int, Record]:
        """Read the records of an array's tasks, by their numbers; a single job is task 0."""
        return self._run(self.core.task_records(key))

    def is_expected(self, key: str) -> bool:
        """Tell whether a job without a record may get one: its request waits, or the bus is younger than the job."""
        return self._run(self.core.is_expected(key))

    def records(self, limit: int | None = None) -> list[Record]:
        """Read the newest ``limit`` records of the site, newest first."""
        return self._run(self.core.records(limit))

    def find(self, text: str) -> Record:
        """Find the job whose key is or begins with ``text``, or whose Slurm id it is.

        Raises:
            UnknownJob: there is none.
            AmbiguousJob: there are several.
        """
        return self._run(self.core.find(text))

    def heartbeats(self) -> list[AgentStatus]:
        """Read the heartbeats of the site's agents, the leader's first."""
        return self._run(self.core.heartbeats())

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
        core = self.core
        return Following(self.connection, core.follow(key, task=task, streams=streams, after=after, patience=patience))

    def follow_tasks(
        self,
        tasks: Mapping[str, Collection[int]],
        *,
        streams: bool = True,
        after: Mapping[tuple[str, int], Cursor] | None = None,
        patience: float = 5.0,
    ) -> FollowingTasks:
        """Follow many tasks at once, with one set of readers however many they are; else as :meth:`follow`.

        Ends when each task has had its Finished.

        Args:
            tasks: the numbers of the tasks, by the key of their array.
            streams: also give the output and the Pipes messages.
            after: bytes of each (start, stream) of a (key, task) that aren't wanted again.
            patience: seconds without any event after which a Waiting is given; the next ones come ever more rarely.
        """
        core = self.core
        events = core.follow_tasks(tasks, streams=streams, after=after, patience=patience)
        return FollowingTasks(self.connection, events, sum(map(len, tasks.values())))

    def ends(self, key: str, task: int = 0) -> Cursor:
        """Tell up to where the bus holds stdout and stderr of each start at this moment."""
        return self._run(self.core.ends(key, task))

    def wait_for_accounting(self, key: str, timeout: float, task: int = 0) -> Record:
        """Wait until the record carries accounting's figures; after ``timeout`` seconds give it as it is.

        That of a rejected job is given at once: accounting knows nothing of it.

        Raises:
            UnknownJob: there is no record.
        """
        return self._run(self.core.wait_for_accounting(key, timeout, task))

    def cancel(
        self,
        key: str,
        reason: str = "",
        *,
        patience: float = SUBMIT_PATIENCE,
        tell: Callable[[str], None] | None = None,
        task: int | None = None,
    ) -> str:
        """Ask durably for the job's end; returns when the bus has the request, with the request's own id.

        It is accepted when the record shows it, as it shows a refusal (see :func:`slurmbus.errors.check_refusal`).
        Until the job has ended this process publishes it again should the bus start anew.

        Args:
            key: the job.
            reason: kept with the job.
            patience: seconds that a bus which is away may take to come back.
            tell: called with what is being waited for, should it take long.
            task: only this task of an array; None is all of them.

        Raises:
            BusFull: the bus takes no new requests.
            BusUnreachable: it may or may not have been stored: repeat it.
        """
        return self._run_telling(self.core.cancel(key, reason, patience, task), tell)

    def requeue(
        self,
        key: str,
        reason: str = "",
        *,
        patience: float = SUBMIT_PATIENCE,
        tell: Callable[[str], None] | None = None,
        task: int | None = None,
    ) -> str:
        """Ask durably for another start of a running job; returns when the bus has it, with the request's own id.

        The job has to be submitted with ``requeue=True``. Slurm is told at most once; what came of it stands in the
        record (see :func:`slurmbus.errors.check_requeue`).

        Args:
            key: the job.
            reason: kept with the job.
            patience: seconds that a bus which is away may take to come back.
            tell: called with what is being waited for, should it take long.
            task: which task of an array; None for a single job.

        Raises:
            NotRequeueable: the job has ended.
            AgentTooOld: the site's agent doesn't know this control.
            BusFull: the bus takes no new requests.
            BusUnreachable: it may or may not have been stored.
        """
        return self._run_telling(self.core.requeue(key, reason, patience, task), tell)

    def ask(self, verb: str, message: Message, answer: type[M], timeout: float = 5.0, *, signed: bool = False) -> M:
        """Ask the site's agent something that may fail; with a signature where it has to be this client's wish.

        Raises:
            SiteUnreachable: no agent answers.
            SlurmbusError: what the agent answered, as the error class of its code.
        """
        return self._run(self.core.ask(verb, message, answer, timeout, signed=signed))
