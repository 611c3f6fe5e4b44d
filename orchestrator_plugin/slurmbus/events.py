"""What following a job gives, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slurmbus_protocol.messages import Heartbeat, Record
from slurmbus_protocol.subjects import Stream

Cursor = Mapping[tuple[int, Stream], int]
"""How many bytes of each (start, stream) were taken already."""


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """An agent's last heartbeat and how old it is by the bus's clock."""

    heartbeat: Heartbeat
    age: float
    """Seconds."""

    @property
    def alive(self) -> bool:
        """True when the agent hasn't missed its lease time and didn't stop on purpose."""
        return not self.heartbeat.released and self.age <= self.heartbeat.lease_seconds


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The record changed: another state, job id, start or reason."""

    record: Record


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of a stream, in order within the stream, each byte once."""

    start: int
    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of stdout or stderr that don't come: lost, or left out on purpose."""

    start: int
    stream: Stream
    offset: int
    length: int
    reason: str
    over_limit: bool = False
    """True: left out, because the stream is over its limit (``JobSpec.stream_limit``). False: nobody has them."""
    path: str = ""
    """The file on the site that holds the whole stream, when bytes were left out and it is known."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has happened for a while; this is what is known about why."""

    since: float
    """Since when nothing has happened, in seconds since 1970 by this machine's clock."""
    record: Record | None
    """The last record, or None when no agent has taken the job yet."""
    agent: AgentStatus | None
    """The site's agent, or None when the bus knows of none or can't be asked."""
    bus_reachable: bool
    problem: str = ""
    """Why the bus can't be asked, or why the request can't be published on a bus that started anew."""
    bus_is_new: bool = False
    """The bus started anew, and no agent has written the job's record there yet."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The record is final and every byte up to the sizes that it states has been given; nothing follows."""

    record: Record


Event = StateChanged | Output | Gap | Waiting | Finished


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """An event of one of the tasks that are followed together."""

    key: str
    task: int
    event: Event
    """A Waiting is about all of them."""
