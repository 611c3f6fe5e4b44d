"""Following the tasks of an array, and keeping all that came of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slurmbus.client import SiteClient
from slurmbus.events import Finished, Output, StateChanged, TaskEvent
from slurmbus_protocol.messages import CommandPlan, JobSpec, Record, TaskSpec
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream


@dataclass
class TaskStory:
    """What a follower was told of one task."""

    states: list[JobState] = field(default_factory=list)
    bytes: dict[tuple[int, Stream], bytes] = field(default_factory=lambda: defaultdict(bytes))
    record: Record | None = None
    finished: int = 0

    @property
    def final(self) -> Record:
        assert self.record is not None
        assert self.record.state.is_final
        return self.record

    @property
    def stdout(self) -> str:
        last = max((start for start, _ in self.bytes), default=0)
        return self.bytes[last, Stream.STDOUT].decode()

    def hear(self, event: object) -> None:
        if isinstance(event, StateChanged | Finished):
            self.record = event.record
            if not self.states or self.states[-1] is not event.record.state:
                self.states.append(event.record.state)
            self.finished += isinstance(event, Finished)
        elif isinstance(event, Output):
            known = self.bytes[event.start, event.stream]
            assert event.offset == len(known), f"{event.stream}: {event.offset} after {len(known)} bytes"
            self.bytes[event.start, event.stream] = known + event.data


def array(script: str, tasks: Iterable[TaskSpec], **fields: Any) -> JobSpec:
    """A shell script whose arguments are those of each task."""
    plan = CommandPlan(argv=("sh", "-c", script, "task"))
    return JobSpec(name="array", plan=plan, tasks=tuple(tasks), **fields)


def follow_tasks(
    client: SiteClient,
    tasks: Mapping[str, Iterable[int]],
    each: Callable[[TaskEvent, dict[int, TaskStory]], None] = lambda _event, _stories: None,
) -> dict[int, TaskStory]:
    """Follow tasks to their ends."""
    stories: dict[int, TaskStory] = defaultdict(TaskStory)
    with client.follow_tasks({key: tuple(numbers) for key, numbers in tasks.items()}) as events:
        for event in events:
            stories[event.task].hear(event.event)
            each(event, stories)
    assert all(story.finished == 1 for story in stories.values())
    return dict(stories)
