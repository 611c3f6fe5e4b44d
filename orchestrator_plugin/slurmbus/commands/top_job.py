"""One job in ``slurmbus top``: its way from request to result, and the end of its output, live."""

from __future__ import annotations

import codecs
import time
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from slurmbus.commands.console import duration, state_colour
from slurmbus.commands.job_lines import job_line
from slurmbus.events import Gap, Output
from slurmbus.picture import JobName, Picture
from slurmbus.site import Site
from slurmbus.timeline import Step, steps_of
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

TAIL = 16 * 1024
"""Bytes of each stream that are shown of what is there already."""
LINES = 500
BAR = 30


@dataclass(slots=True)
class JobFrame:
    """One frame of one job; it fits itself into the terminal's height.

    Args:
        picture: has its record.
        name: of the job.
    """

    picture: Picture
    name: JobName
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    problem: str = ""
    _rest: dict[Stream, str] = field(default_factory=dict)

    async def follow(self, site: Site) -> None:
        """Take its output, until all of it has come."""
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in Stream}
        try:
            ends = await site.ends(self.name.key, self.name.task)
            after = {key: max(0, end - TAIL) for key, end in ends.items()}
            async with aclosing(site.follow(self.name.key, task=self.name.task, after=after)) as events:
                async for event in events:
                    if isinstance(event, Output) and event.stream is not Stream.MESSAGES:
                        self.take(event.stream, decoders[event.stream].decode(event.data))
                    elif isinstance(event, Gap):
                        self.lines.append(f"… {event.length:,} bytes are missing here: {event.reason}")
        except SlurmbusError as error:
            self.problem = error.message

    def take(self, stream: Stream, text: str) -> None:
        """Add output; what a carriage return has overwritten isn't shown."""
        *whole, self._rest[stream] = (self._rest.get(stream, "") + text).split("\n")
        self.lines.extend(line.rstrip("\r").rpartition("\r")[2] for line in whole)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        record, now = self.picture.jobs.get(self.name), time.time()
        if record is None:
            yield Text(f"{self.name.site} has no job {self.name.key}", "red")
            return
        line = job_line([record], now)
        state = record.state.value
        cells = (cell for cell in line.cells[4:] if cell)
        yield Text.assemble((line.cells[2], "bold"), "  ", (state, state_colour(record.state)), "  ", "  ".join(cells))
        yield Text(f"{line.cells[0]}  {line.cells[1]}", "dim")
        steps = steps_of(record)
        if steps:
            yield _timeline(steps, now, record.state)
        yield Rule("output", style="dim", align="left")
        room = max(3, console.height - len(steps) - 5)
        shown = [*self.lines, *(rest for rest in self._rest.values() if rest)][-room:]
        for text in shown or [self.problem or "nothing yet"]:
            yield Text(_printable(text), "" if shown else "dim", no_wrap=True, overflow="ellipsis")


def _printable(text: str) -> str:
    """What a job writes moves no cursor here."""
    return "".join(letter if letter.isprintable() else " " for letter in text.expandtabs())


def _timeline(steps: list[Step], now: float, state: JobState) -> Table:
    begin = steps[0].begin
    whole = max(0.001, max(step.end or now for step in steps) - begin)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    for step in steps:
        end = step.end or now
        first = min(BAR - 1, int(BAR * (step.begin - begin) / whole))
        length = max(1, round(BAR * (end - step.begin) / whole))
        bar = Text(" " * first + "━" * min(length, BAR - first), state_colour(state) if step.end is None else "blue")
        table.add_row(step.what, duration(max(0.0, end - step.begin)), bar)
    return table
