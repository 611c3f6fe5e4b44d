"""Showing a job while it runs: its output as it is, everything else on stderr; or all of it as JSON lines."""

from __future__ import annotations

import base64
import sys
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec

from slurmbus.commands.console import duration, note, show_json, state_colour
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

_PASSING = {JobState.STAGING, JobState.SUBMITTING, JobState.COMPLETING}
"""States that last milliseconds and that nobody waits for, unless they have a reason."""
_EMPTY_REASONS = ("None", "NonZeroExitCode")


@dataclass
class JobView:
    """Shows the events of one job.

    Args:
        site: for what is said about its agent.
        as_json: JSON lines on stdout instead.
        streams: which output is shown, and where.
        quiet: say nothing of states.
    """

    site: str
    as_json: bool = False
    streams: dict[Stream, BinaryIO] = field(
        default_factory=lambda: {Stream.STDOUT: sys.stdout.buffer, Stream.STDERR: sys.stderr.buffer}
    )
    quiet: bool = False
    task: int | None = None
    """Stands in JSON lines: whose event it is, of an array's tasks."""
    _said: tuple[object, ...] = ()
    _over_limit: set[tuple[int, Stream]] = field(default_factory=set)

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Output):
            if event.stream in self.streams:
                self._output(event)
        elif self.as_json:
            self._as_json(event)
        elif isinstance(event, StateChanged):
            self._state(event.record)
        elif isinstance(event, Gap):
            if event.stream in self.streams:
                self._gap(event)
        elif isinstance(event, Waiting):
            self._waiting(event)
        elif event.record.hint and not self.quiet:
            note(f"slurmbus: {event.record.hint}")

    def _output(self, event: Output) -> None:
        if self.as_json:
            where: dict[str, Any] = {"start": event.start, "stream": event.stream, "offset": event.offset}
            where |= {"task": self.task} if self.task is not None else {}
            try:
                show_json({"event": "output", **where, "text": event.data.decode()})
            except UnicodeDecodeError:
                show_json({"event": "output", **where, "base64": base64.b64encode(event.data).decode()})
            return
        file = self.streams[event.stream]
        file.write(event.data)
        file.flush()

    def _gap(self, gap: Gap) -> None:
        if not gap.over_limit:
            note(f"[{gap.length:,} bytes of {gap.stream} are missing: {gap.reason}]", colour="red")
            return
        if (gap.start, gap.stream) not in self._over_limit:
            self._over_limit.add((gap.start, gap.stream))
            where = f"; all of it lies on the site in {gap.path}" if gap.path else ""
            note(f"[{gap.stream} is very long: from here on only the newest lines are shown{where}]", colour="yellow")
        note(f"[… {gap.length:,} bytes left out …]", colour="yellow")

    def _as_json(self, event: StateChanged | Gap | Waiting | Finished) -> None:
        if isinstance(event, StateChanged):
            show_json({"event": "state", "state": event.record.state, "record": event.record})
        elif isinstance(event, Finished):
            show_json({"event": "finished", "state": event.record.state, "record": event.record})
        elif isinstance(event, Gap):
            where = {"start": event.start, "stream": event.stream, "offset": event.offset, "length": event.length}
            why = {"reason": event.reason, "over_limit": event.over_limit, "path": event.path}
            show_json({"event": "gap", **where, **why})
        else:
            agent = event.agent
            show_json(
                {
                    "event": "waiting",
                    "since": event.since,
                    "bus_reachable": event.bus_reachable,
                    "agent_alive": agent.alive if agent else False,
                    "agent_age": agent.age if agent else None,
                    "alarms": agent.heartbeat.alarms if agent else (),
                    "bus_is_new": event.bus_is_new,
                    "problem": event.problem,
                }
            )

    def _state(self, record: Record) -> None:
        if self.quiet or (record.state in _PASSING and not record.reason):
            return
        who = f"job {record.job_id}" if record.job_id else record.key
        said = (who, _words(record))
        if said != self._said:
            self._said = said
            note(": ".join(said), colour=state_colour(record.state))

    def _waiting(self, event: Waiting) -> None:
        alive, alarms = (event.agent.alive, event.agent.heartbeat.alarms) if event.agent else (None, ())
        said = (event.bus_reachable, alive, alarms, event.problem, event.record is None, event.bus_is_new)
        if said == self._said:
            return
        since = time.strftime("%H:%M:%S", time.localtime(event.since))
        if not event.bus_reachable:
            why = f" ({event.problem})" if event.problem else ""
            text = f"the bus hasn't answered since {since}{why}; the job isn't touched by that"
        elif event.problem:
            text = event.problem
        elif event.bus_is_new:
            text = f"the bus started anew; the agent of site {self.site} will write the job's record there again"
        elif event.agent is None:
            text = f"no agent has ever answered for site {self.site}: start it with 'slurmbus-agent run'"
        elif not event.agent.alive:
            silent = duration(event.agent.age)
            text = f"the agent of site {self.site} ({event.agent.heartbeat.host}) has been silent for {silent}"
            if alarms:
                text += f"; its last report: {'; '.join(alarms)}"
        elif event.agent.heartbeat.scheduler.silent:
            text = f"Slurm on {event.agent.heartbeat.host} doesn't answer: {event.agent.heartbeat.scheduler.error}"
        elif alarms:
            text = f"the agent of site {self.site} reports: {'; '.join(alarms)}"
        else:
            return
        self._said = said
        note(f"slurmbus: waiting: {text}", colour="yellow")


def _words(record: Record) -> str:
    words = record.state.value
    if record.slurm_state and record.slurm_state != record.state:
        words += f" ({record.slurm_state})"
    if record.node_list:
        words += f" on {record.node_list}"
    parts = [words]
    if record.state.is_final and record.state is not JobState.COMPLETED:
        if record.signal:
            parts.append(f"signal {record.signal}")
        elif record.exit_code is not None:
            parts.append(f"exit code {record.exit_code}")
    if record.reason and not record.reason.startswith(_EMPTY_REASONS):
        parts.append(record.reason)
    if record.state.is_final and record.start_time is not None and record.end_time is not None:
        parts.append(f"after {duration(max(0.0, record.end_time - record.start_time))}")
    return ", ".join(parts)


def record_json(record: Record) -> dict[str, Any]:
    """Give a record as plain values."""
    value: dict[str, Any] = msgspec.to_builtins(record)
    return value
