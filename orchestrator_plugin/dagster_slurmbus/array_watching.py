"""A step that stays with the tasks of its arrays until their ends, or leaves them."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import dagster as dg
from dagster_pipes import PipesMessage

from dagster_slurmbus import _compat
from dagster_slurmbus.array_launches import Place
from dagster_slurmbus.array_tasks import NumberedTask
from dagster_slurmbus.failures import BECAUSE_OF_A_SIBLING
from dagster_slurmbus.messages import RelayedMessageReader
from dagster_slurmbus.narrator import Narrator
from dagster_slurmbus.observations import Addresses
from dagster_slurmbus.outcomes import succeeded
from dagster_slurmbus.shown import Shown
from dagster_slurmbus.watching import INTERRUPTS, Conduct
from slurmbus.client import FollowingTasks, SiteClient
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, TaskEvent, Waiting
from slurmbus_protocol.arrays import slurm_id
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

NARRATE_EVERY = 5.0
"""Seconds between two lines about an array's tasks: ``context.log`` takes 5 to 13 ms a line, and there may be 1,000."""
MOST_FAILURES = 20
"""Failed tasks that are told one by one while the others run."""
_TAIL_BYTES = 4096
_LOGS = frozenset({"log", "log_external_stream"})


class TaskReader(RelayedMessageReader):
    """Reads the Pipes messages of one task; its log lines say whose they are."""

    def __init__(self, name: str, warn: Callable[[str], None], times_logged: Callable[[str], int]) -> None:
        super().__init__(lambda text: warn(f"[{name}] {text}"), lambda text: times_logged(f"[{name}] {text}"))
        self._name = name

    def _deliver(self, message: PipesMessage) -> None:
        params = message.get("params")
        if message["method"] == "opened":  # a line for each of a thousand tasks says nothing
            return
        if message["method"] in _LOGS and params is not None:
            text = "text" if "text" in params else "message"
            changed = {**message, "params": {**params, text: f"[{self._name}] {params.get(text)}"}}
            message = cast("PipesMessage", changed)
        super()._deliver(message)


class TaskLines:
    """Writes the output of one task, line by line and with its name, to this process's own streams."""

    def __init__(self, name: str, shown: Shown) -> None:
        self._name = name.encode(errors="replace")
        self._shown = shown
        self._begun: dict[tuple[int, Stream], bytes] = {}

    def output(self, event: Output) -> None:
        """Show the lines that these bytes complete."""
        at = (event.start, event.stream)
        known = self._begun.get(at, b"") + event.data
        until = event.offset + len(event.data)
        *lines, rest = known.split(b"\n")
        self._begun[at] = rest
        begin = until - len(known)
        for line in lines:
            begin += len(line) + 1
            self._show(event.start, event.stream, begin, line)

    def gap(self, gap: Gap) -> None:
        """Mark the place of bytes that don't come."""
        self._end_line(gap.start, gap.stream, gap.offset)
        what = "left out" if gap.over_limit else "missing"
        mark = f"[slurmbus: {gap.length:,} bytes are {what} here]".encode()
        self._show(gap.start, gap.stream, gap.offset + gap.length, mark)

    def finish(self, sizes: Mapping[tuple[int, Stream], int]) -> None:
        """Show lines that have no end."""
        for start, stream in list(self._begun):
            self._end_line(start, stream, sizes.get((start, stream), 0))
        self._shown.close()

    def _end_line(self, start: int, stream: Stream, until: int) -> None:
        rest = self._begun.pop((start, stream), b"")
        if rest:
            self._show(start, stream, until, rest)

    def _show(self, start: int, stream: Stream, until: int, line: bytes) -> None:
        if until <= self._shown.until(start, stream):
            return
        target = sys.stdout if stream is Stream.STDOUT else sys.stderr
        raw = getattr(target, "buffer", None)
        whole = b"[%s] %s\n" % (self._name, line)
        if raw is None:  # somebody replaced the stream by one of text
            target.write(whole.decode(errors="replace"))
        else:
            target.flush()
            raw.write(whole)
        target.flush()
        self._shown.end(start, stream, until)


@dataclass
class WatchedTask:
    """One task, and all that came of it so far."""

    task: NumberedTask
    place: Place
    reader: TaskReader
    handler: dg.PipesMessageHandler
    lines: TaskLines
    shown: Shown
    reattached: bool
    record: Record | None = None
    stderr: bytes = b""
    sizes: dict[tuple[int, Stream], int] = field(default_factory=dict)
    ended: bool = False

    def take(self, event: Event, *, forward_stdio: bool) -> None:
        """Take what was heard of it."""
        match event:
            case Output(start=start, stream=Stream.MESSAGES, data=data):
                self.reader.feed(start, data)
            case Output(start=start, stream=stream, offset=offset, data=data):
                self.sizes[start, stream] = offset + len(data)
                if stream is Stream.STDERR:
                    self.stderr = (self.stderr + data)[-_TAIL_BYTES:]
                if forward_stdio:
                    self.lines.output(event)
            case Gap():
                if forward_stdio:
                    self.lines.gap(event)
            case StateChanged(record=record):
                self.record = record
            case Finished(record=record):
                self.record = record
                self.reader.finish(record.starts[-1].number if record.starts else 0)
                self.lines.finish(self.sizes)
                self.ended = True
        self.shown.close()  # a file for each of a thousand tasks can't stay open

    @property
    def last_words(self) -> str:
        """What it said last: its exception, unless it only says that the payload ended by itself."""
        exception = (self.reader.payload_exception or "").rstrip()
        said = self.stderr.decode(errors="replace").rstrip()
        if exception and (not said or not exception.splitlines()[-1].startswith("SystemExit")):
            return exception
        return said


class ArrayWatching:
    """The tasks of one call on behalf of one step.

    Args:
        context: of the step.
        client: of the tasks' site.
        conduct: how to behave.
        cancel_on_failure: end all others as soon as one has failed.
        goes_on: tells of a task that has failed whether it is run again, with more memory or time.
    """

    def __init__(
        self,
        context: dg.OpExecutionContext,
        client: SiteClient,
        conduct: Conduct,
        *,
        cancel_on_failure: bool,
        goes_on: Callable[[Place, Record], bool],
    ) -> None:
        self.client = client
        self.tasks: dict[tuple[str, int], WatchedTask] = {}
        self._context = context
        self._conduct = conduct
        self._cancel_on_failure = cancel_on_failure
        self._goes_on = goes_on
        self._narrator = Narrator(client.site, "", info=context.log.info, warning=context.log.warning)
        self._addresses = Addresses(context)
        self._told: str = ""
        self._told_at = 0.0
        self._failures = 0
        self._cancelled = False
        self._handlers = ExitStack()

    def add(self, task: NumberedTask, place: Place, *, reattached: bool) -> None:
        """Watch a task."""
        context = self._context
        reader = TaskReader(task.name, context.log.warning, partial(_compat.times_logged, context))
        shown = Shown(_compat.shown_path(context, f"{place.key}.{place.index}"))
        reader.shown = shown
        handler = dg.PipesMessageHandler(context, reader)
        self._handlers.enter_context(handler.handle_messages())
        lines = TaskLines(task.name, shown)
        self.tasks[place.key, place.index] = WatchedTask(task, place, reader, handler, lines, shown, reattached)

    def follow(self, submit: Callable[[], object] | None) -> None:
        """Submit, if that is to be done, and follow all tasks to their ends."""
        wanted: dict[str, list[int]] = {}
        for key, index in self.tasks:
            wanted.setdefault(key, []).append(index)
        with self._handlers, self.client.follow_tasks(wanted) as following:
            try:
                if submit is not None:
                    submit()
                for event in following:
                    self._take(event)
            except INTERRUPTS:
                with _compat.capture_interrupts():
                    self._leave(following)
                raise
        self._tell(at_last=True)

    def end(self, places: Collection[Place], reason: str) -> None:
        """Cancel tasks that shall not go on, and wait for their ends."""
        wanted: dict[str, list[int]] = {}
        for place in places:
            wanted.setdefault(place.key, []).append(place.index)
        for key, indexes in wanted.items():
            self._cancel(key, indexes, reason)
        with self.client.follow_tasks(wanted, streams=False) as following:
            for event in following:
                if isinstance(event.event, Waiting):
                    self._narrator.waiting(event.event)

    def _cancel(self, key: str, indexes: Collection[int], reason: str) -> None:
        record = self.client.record(key, next(iter(indexes)))
        if record is None or record.tasks <= len(indexes):  # all of it, or what nobody knows yet
            self.client.cancel(key, reason)
            return
        for index in indexes:
            self.client.cancel(key, reason, task=index)

    def _take(self, event: TaskEvent) -> None:
        if isinstance(event.event, Waiting):
            self._narrator.waiting(event.event)
            return
        task = self.tasks[event.key, event.task]
        task.take(event.event, forward_stdio=self._conduct.forward_stdio)
        if isinstance(event.event, Finished) and not succeeded(event.event.record):
            self._failed(task, event.event.record)
        if isinstance(event.event, StateChanged | Finished):
            given = task.task.given
            self._addresses.take(event.event.record, task=task.task.name, partition=given.partition_key)
            self._tell()

    def _failed(self, task: WatchedTask, record: Record) -> None:
        if record.cancel is not None:
            return
        self._failures += 1
        again = self._goes_on(task.place, record)
        if self._failures <= MOST_FAILURES:
            job, why = slurm_id(record) or record.key, f": {record.reason}" if record.reason else ""
            more = "; when all others have ended it is run again with more" if again else ""
            self._context.log.warning("task %r (%s) is %s%s%s", task.task.name, job, record.state, why, more)
        if self._cancel_on_failure and not self._cancelled and not again:
            self._cancelled = True
            self._context.log.warning("task %r has failed: cancelling all others", task.task.name)
            self._cancel_unfinished(f"{BECAUSE_OF_A_SIBLING} {task.task.name!r} has failed")

    def _cancel_unfinished(self, reason: str) -> None:
        unfinished: dict[str, list[int]] = {}
        for (key, index), task in self.tasks.items():
            if task.record is None or not task.record.state.is_final:
                unfinished.setdefault(key, []).append(index)
        for key, indexes in unfinished.items():
            ours = sum(other == key for other, _ in self.tasks)
            of_all = next((t.record.tasks for (k, _), t in self.tasks.items() if k == key and t.record), ours)
            if ours >= of_all:  # those that have ended don't mind
                self.client.cancel(key, reason)
            else:
                for index in indexes:
                    self.client.cancel(key, reason, task=index)

    def _tell(self, *, at_last: bool = False) -> None:
        """Tell how many tasks are in which state, when that has changed, and not too often."""
        now = time.monotonic()
        if not at_last and now - self._told_at < NARRATE_EVERY:
            return
        states = Counter(task.record.state if task.record else JobState.ACCEPTED for task in self.tasks.values())
        order = list(JobState)
        counts = ", ".join(f"{states[state]} {state}" for state in sorted(states, key=order.index))
        ids = dict.fromkeys(str(t.record.job_id) for t in self.tasks.values() if t.record and t.record.job_id)
        text = f"array {', '.join(ids) or next(iter(self.tasks))[0]} of {len(self.tasks)} tasks: {counts}"
        if text != self._told:
            self._told, self._told_at = text, now
            self._context.log.info(text)

    def _leave(self, following: FollowingTasks) -> None:
        """Cancel the tasks when their run was terminated; otherwise only stop following them."""
        log = self._context.log
        keys = ", ".join(dict.fromkeys(key for key, _ in self.tasks))
        if not (self._conduct.forward_termination and _compat.ends_for_good(self._context)):
            log.warning(
                "this step was interrupted and stops following its array %s on site %s, but the tasks go on. A retry "
                "of this step finds them again",
                keys,
                self.client.site,
            )
            return
        log.info("the run was terminated: cancelling array %s on site %s", keys, self.client.site)
        try:
            self._cancel_unfinished(f"Dagster run {self._context.run_id} was terminated")
            deadline = time.monotonic() + self._conduct.termination_timeout_seconds
            while (left := deadline - time.monotonic()) > 0 and not all(task.ended for task in self.tasks.values()):
                event = following.wait(left)
                if event is not None:
                    self._take(event)
        except SlurmbusError as error:
            log.warning("array %s couldn't be cancelled: %s. Do it with 'slurmbus cancel'", keys, error)
            return
        if not all(task.ended for task in self.tasks.values()):
            log.warning("array %s has been told to end and hasn't yet; its agent goes on trying", keys)
