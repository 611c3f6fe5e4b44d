"""Showing the tasks of an array while they run: whole lines of output, each with its task in front."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from slurmbus.commands.console import note, state_colour
from slurmbus.commands.view import JobView
from slurmbus.events import Event, Finished, Output, StateChanged, TaskEvent, Waiting
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


@dataclass
class ArrayView:
    """Shows the events of many tasks.

    Args:
        view: shows what isn't a task's own affair, and as JSON lines everything, with a field ``task``.
    """

    view: JobView
    _lines: dict[tuple[int, int, Stream], bytes] = field(default_factory=dict)
    _states: dict[int, JobState] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _told: str = ""

    def show(self, event: TaskEvent) -> None:
        """Show one event."""
        inner = event.event
        if self.view.as_json:
            self.view.task = event.task
            self.view.show(inner)
        elif isinstance(inner, Output):
            self._output(event.task, inner)
        elif isinstance(inner, StateChanged):
            self._state(inner.record)
        elif isinstance(inner, Finished):
            self._finish(event.task, inner.record)
        elif isinstance(inner, Waiting) or inner.stream in self.view.streams:
            self.view.show(inner)

    def _output(self, task: int, event: Output) -> None:
        if event.stream not in self.view.streams:
            return
        at = (task, event.start, event.stream)
        *lines, self._lines[at] = (self._lines.get(at, b"") + event.data).split(b"\n")
        for line in lines:
            self._write(task, event.stream, line)

    def _write(self, task: int, stream: Stream, line: bytes) -> None:
        file = self.view.streams[stream]
        file.write(b"[%s] %s\n" % (self._names.get(task, str(task)).encode(), line))
        file.flush()

    def _state(self, record: Record) -> None:
        self._names[record.task] = record.task_name or str(record.task)
        self._states[record.task] = record.state
        if self.view.quiet or record.state not in {JobState.PENDING, JobState.RUNNING}:
            return
        counts = Counter(self._states.values())
        settled = sum(count for state, count in counts.items() if state.is_final or state is JobState.RUNNING)
        text = f"array {record.job_id or record.key}: {counts[JobState.RUNNING]} of {record.tasks} tasks run"
        if text != self._told and settled:
            self._told = text
            note(text, colour=state_colour(record.state))

    def _finish(self, task: int, record: Record) -> None:
        for (other, _, stream), rest in list(self._lines.items()):
            if other == task and rest:
                self._write(task, stream, rest)
        self._lines = {at: rest for at, rest in self._lines.items() if at[0] != task}
        self._state(record)
        if record.state is not JobState.COMPLETED and not self.view.quiet:
            code = f", exit code {record.exit_code}" if record.exit_code is not None else ""
            reason = f", {record.reason}" if record.reason else ""
            name = self._names.get(task, str(task))
            note(f"task {name}: {record.state}{code}{reason}", colour=state_colour(record.state))


@dataclass
class TaskView:
    """Shows the events of one task in the view of its array."""

    array: ArrayView
    key: str
    task: int

    def show(self, event: Event) -> None:
        """Show one event."""
        self.array.show(TaskEvent(self.key, self.task, event))
