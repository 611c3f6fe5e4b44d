"""Running one job through a site's client, and keeping all that came of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from contract.bus_site import wait_until
from slurmbus.client import SiteClient
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus_protocol.messages import CommandPlan, JobOptions, JobSpec, Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


@dataclass
class Story:
    """What a follower of one job was told."""

    states: list[JobState] = field(default_factory=list)
    bytes: dict[Stream, bytes] = field(default_factory=lambda: defaultdict(bytes))
    gaps: list[Gap] = field(default_factory=list)
    waits: list[Waiting] = field(default_factory=list)
    final: Record | None = None

    def hear(self, event: Event) -> None:
        match event:
            case StateChanged(record=record):
                if not self.states or self.states[-1] is not record.state:
                    self.states.append(record.state)
            case Output(stream=stream, offset=offset, data=data):
                assert offset == len(self.bytes[stream]), f"{stream}: {offset} after {len(self.bytes[stream])} bytes"
                self.bytes[stream] += data
            case Gap():
                self.gaps.append(event)
            case Waiting():
                self.waits.append(event)
            case Finished(record=record):
                self.final = record

    @property
    def record(self) -> Record:
        assert self.final is not None
        return self.final

    @property
    def stdout(self) -> str:
        return self.bytes[Stream.STDOUT].decode()

    @property
    def stderr(self) -> str:
        return self.bytes[Stream.STDERR].decode()


def spec(*argv: str, name: str = "test", options: JobOptions | None = None, **fields: Any) -> JobSpec:
    return JobSpec(name=name, plan=CommandPlan(argv=argv), options=options or JobOptions(), **fields)


def follow(client: SiteClient, key: str) -> Story:
    story = Story()
    for event in client.follow(key):
        story.hear(event)
    return story


def run(client: SiteClient, *argv: str, **fields: Any) -> Story:
    """Run a job to its end."""
    return follow(client, client.submit(spec(*argv, **fields)))


def wait_until_it_runs(client: SiteClient, key: str) -> Record:
    """Wait until a job runs, and give its record."""
    records: list[Record] = []

    def runs() -> bool:
        record = client.record(key)
        records[:] = [record] if record is not None else []
        return record is not None and record.state is JobState.RUNNING

    wait_until(runs, f"job {key} runs")
    return records[0]
