"""What ``slurmbus top`` shows at one moment: what needs attention, the sites, the newest jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from slurmbus.attention import Level, attention
from slurmbus.commands.console import duration, state_colour
from slurmbus.commands.job_lines import COLUMNS, JobLine, job_groups, job_line
from slurmbus.history import over_time
from slurmbus.picture import AgentView, JobName, Picture
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import FINAL, JobState

MOST_ITEMS = 6
JOBS_AT_ONCE = 20
"""Jobs that are shown where the height doesn't say."""
LEAST_JOBS = 3
HOUR, BUCKETS = 3600.0, 24
"""What the line of jobs over time spans, in how many marks."""
BEATS = 10
"""Heartbeats that a line shows, where they come as often as now."""
_LEVELS = {Level.BAD: "bold red", Level.WARNING: "yellow", Level.NOTE: "dim"}
_CONDITIONS = {"alive": "green", "late": "yellow", "silent": "red", "stopped": "dim"}
_PULSES = "▂▃▄▅▆▇█"
_FASTEST = 0.0005
"""Seconds of a round trip that is drawn lowest; each step up is three times as long."""
_ORDER = (JobState.RUNNING, JobState.COMPLETING, JobState.PENDING, JobState.SUBMITTING, JobState.STAGING)
_FULL, _TIGHT = 0.9, 0.7
LONGEST = 28
"""Letters of a job's name or reason."""
Cell = Callable[[AgentView, float], Text]


@dataclass(slots=True)
class Frame:
    """One frame; it fits itself into the terminal's size.

    Args:
        picture: what is known.
        site: only this one; None is all.
        first: the first job that is shown, counted from the newest.
        live: whether it shall fill a terminal, and no more.
    """

    picture: Picture
    site: str | None = None
    first: int = 0
    live: bool = False
    _shown_first: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        now = time.time()
        above = Group(*self._above(now, console.width, console.height // 2 if self.live else None))
        room = JOBS_AT_ONCE
        if self.live:
            used = len(console.render_lines(above, options))
            room = max(LEAST_JOBS, console.height - used - 3)
        yield above
        yield from self._jobs(now, room, console.width)

    def _above(self, now: float, width: int, most: int | None) -> Iterator[RenderableType]:
        yield self._title(now)
        yield from self._attention(now)
        yield from self._over_time(now)
        rows = _agent_rows(self.picture, self.sites(), now)
        if most is not None and len(rows) > most:  # those that beat are the ones to leave out
            rows.sort(key=lambda row: row.well)
        yield table_of([column for column, _ in _AGENT_CELLS], [row.cells for row in rows[:most]], width)
        if most is not None and len(rows) > most:
            yield Text(f"and {len(rows) - most} more agents", "dim")

    def sites(self) -> list[str]:
        """Give the names of those that are shown."""
        return [name for name in self.picture.sites() if self.site in {None, name}]

    def _title(self, now: float) -> Text:
        counts = self.picture.counts(self.site)
        text = Text.assemble(("slurmbus ", "bold"), (time.strftime("%H:%M:%S ", time.localtime(now)), "dim"))
        rest = [state for state in JobState if state not in _ORDER]
        for state in (*_ORDER, *rest):
            if counts[state.value]:
                text.append(f"  {counts[state.value]:,} ", state_colour(state))
                text.append(state.value.lower().replace("_", " "), "" if state not in FINAL else "dim")
        return text

    def _over_time(self, now: float) -> Iterator[Text]:
        """Draw the last hour's jobs, each kind against its own highest."""
        records = [record for name, record in self.picture.jobs.items() if self.site in {None, name.site}]
        history = over_time(records, now, step=HOUR / BUCKETS, buckets=BUCKETS)
        kinds = {"running": history.running, "waiting": history.waiting, "failed": history.failed}
        text = Text("last hour", "dim", no_wrap=True, overflow="ellipsis")
        for word, figures in kinds.items():
            if any(figures):
                text.append(f"  {word} ").append(bars(figures), "red" if word == "failed" else "")
        if any(map(any, kinds.values())):
            yield text

    def _attention(self, now: float) -> Iterator[Text]:
        items = [item for item in attention(self.picture, now) if self.site in {None, item.site} or not item.site]
        for item in items[:MOST_ITEMS]:
            sign = "!" if item.level is Level.BAD else "·"
            text = Text(f"{sign} {item.text}", _LEVELS[item.level], no_wrap=self.live, overflow="ellipsis")
            if item.since is not None:
                text.append(f", for {duration(max(0.0, now - item.since))}")
            if item.hint:
                text.append(f"  {item.hint}", "dim")
            yield text
        if len(items) > MOST_ITEMS:
            yield Text(f"  and {len(items) - MOST_ITEMS} more", "dim")

    def top(self) -> JobName | None:
        """Give the job on top of those that are shown; of an array its first task."""
        groups = self._groups()
        if not groups:
            return None
        record = groups[min(self._shown_first, len(groups) - 1)][0]
        return JobName(record.site, record.key, record.task)

    def _groups(self) -> list[list[Record]]:
        return job_groups(record for name, record in self.picture.jobs.items() if self.site in {None, name.site})

    def _jobs(self, now: float, room: int, width: int) -> Iterator[RenderableType]:
        groups = self._groups()
        first = self._shown_first = max(0, min(self.first, len(groups) - room))
        shown = [job_line(group, now) for group in groups[first : first + room]]
        where = f"jobs {first + 1} to {first + len(shown)} of {len(groups)}" if shown else "no jobs yet"
        yield Rule(where, style="dim", align="left")
        if shown:
            yield table_of(_JOB_COLUMNS, [_job_cells(line) for line in shown], width)


def _job_cells(line: JobLine) -> list[Text]:
    cells = dict(zip(COLUMNS, line.cells, strict=True))
    return [
        Text(_shortened(cells[column.name]), state_colour(line.state) if column.name == "STATE" else "")
        for column in _JOB_COLUMNS
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


# ---------------------------------------------------------------------- tables that fit


class Column(NamedTuple):
    """One column of a table."""

    name: str
    rank: int
    """Where there isn't room for all, those with the highest go first."""
    justify: JustifyMethod = "left"


def table_of(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> Table:
    """Make a table of as many columns as have room."""
    widths = [max([cell_len(column.name), *(row[at].cell_len for row in rows)]) for at, column in enumerate(columns)]
    kept = list(range(len(columns)))
    while len(kept) > 1 and sum(widths[at] for at in kept) + _GAP * (len(kept) - 1) > width:
        kept.remove(max(kept, key=lambda at: (columns[at].rank, at)))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for at in kept:
        table.add_column(columns[at].name, no_wrap=True, overflow="ellipsis", justify=columns[at].justify)
    for row in rows:
        table.add_row(*(row[at] for at in kept))
    return table


_GAP = 2
_JOB_COLUMNS = tuple(Column(name, rank) for name, rank in zip(COLUMNS, (8, 1, 0, 0, 6, 4, 3, 2, 5, 2), strict=True))


# ---------------------------------------------------------------------- agents


class _AgentRow(NamedTuple):
    """One agent, or a site without one."""

    cells: list[Text]
    well: bool


def _agent_rows(picture: Picture, sites: list[str], now: float) -> list[_AgentRow]:
    rows = []
    for site in sites:
        agents = picture.present_agents(site, now)
        for agent in agents:
            well = agent.condition(now) == "alive" and not agent.heartbeat.scheduler.silent
            rows.append(_AgentRow([cell(agent, now) for _, cell in _AGENT_CELLS], well))
        if not agents:
            words = {"SITE": Text(site, "bold"), "": Text("no agent yet", "dim")}
            rows.append(_AgentRow([words.get(column.name, Text()) for column, _ in _AGENT_CELLS], well=True))
    return rows


def heartbeat_line(agent: AgentView, now: float) -> str:
    """Draw an agent's last heartbeats: the slower its bus, the higher each; a gap where one is missing."""
    slot = max(agent.heartbeat.interval, 0.5) / 2
    line = []
    for number in range(2 * BEATS, 0, -1):
        begin, end = now - number * slot, now - (number - 1) * slot
        beat = next((beat for beat in reversed(agent.beats) if begin < beat.at <= end), None)
        if beat is not None:
            line.append(_pulse(beat.bus_latency))
        else:
            covered = any(beat.at <= begin < beat.at + 1.5 * beat.interval for beat in agent.beats)
            line.append("▁" if covered else " ")
    return "".join(line)


def _pulse(latency: float | None) -> str:
    steps = math.log(max(latency or 0.0, _FASTEST) / _FASTEST, 3)
    return _PULSES[min(round(steps), len(_PULSES) - 1)]


def bars(figures: Sequence[int]) -> str:
    """Draw figures as high as they are against the highest; nothing where there is none."""
    highest = max(figures)
    return "".join(" " if not one else _PULSES[math.ceil(one / highest * len(_PULSES)) - 1] for one in figures)


def _role(agent: AgentView, now: float) -> Text:
    condition = agent.condition(now)
    word = ("serves" if agent.leader else "stands by") if agent.is_heard(now) else condition
    return Text(f"{word}, late" if condition == "late" else word, _CONDITIONS[condition])


def _line(agent: AgentView, now: float) -> Text:
    return Text(heartbeat_line(agent, now), _CONDITIONS[agent.condition(now)])


def _scheduler(agent: AgentView, now: float) -> Text:
    health = agent.heartbeat.scheduler
    name = f"{health.kind} {health.version}".strip()
    if not agent.is_heard(now):
        return Text(name, "dim")
    if health.silent:
        return Text(f"{name}: no answer", "red")
    return Text(f"{name} {milliseconds(health.latency)}".strip())


def _budgets(agent: AgentView, now: float) -> Text:
    text = Text(style="" if agent.is_heard(now) else "dim")
    for budget in agent.heartbeat.vitals.budgets:
        if budget.limit:
            part = budget.used / budget.limit
            style = "red" if part >= _FULL else "yellow" if part >= _TIGHT else ""
            text.append(f"{budget.name} ", "dim")
            text.append(f"{part:.0%} ", style)
    return text


def _plain(value: Callable[[AgentView], str]) -> Cell:
    return lambda agent, now: Text(value(agent), "" if agent.is_heard(now) else "dim")


def milliseconds(seconds: float | None) -> str:
    """Write a short time."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"  # noqa: PLR2004 - two digits either way


def size(number: float) -> str:
    """Write a number of bytes in few letters."""
    for unit in ("B", "K", "M"):
        if number < 1000:  # noqa: PLR2004 - three digits
            return f"{number:.0f}{unit}"
        number /= 1024
    return f"{number:.1f}G"


_AGENT_CELLS: tuple[tuple[Column, Cell], ...] = (
    (Column("SITE", 0), lambda agent, _: Text(agent.name.site, "bold")),
    (Column("AGENT ON", 4), _plain(lambda agent: agent.heartbeat.host)),
    (Column("", 0), _role),
    (Column("HEARTBEAT", 2), _line),
    (Column("AGE", 1, "right"), lambda agent, now: Text(duration(agent.age(now)), _CONDITIONS[agent.condition(now)])),
    (Column("BUS", 5, "right"), _plain(lambda agent: milliseconds(agent.heartbeat.vitals.bus_latency))),
    (Column("SCHEDULER", 2), _scheduler),
    (Column("JOBS", 3, "right"), _plain(lambda agent: str(sum(agent.heartbeat.vitals.jobs.values())))),
    (Column("BACKLOG", 8, "right"), _plain(lambda agent: size(agent.heartbeat.vitals.backlog))),
    (Column("CPU", 7, "right"), _plain(lambda agent: duration(agent.heartbeat.vitals.cpu_seconds))),
    (Column("MEM", 7, "right"), _plain(lambda agent: size(agent.heartbeat.vitals.rss))),
    (Column("BUDGETS", 6), _budgets),
    (Column("VERSION", 9), _plain(lambda agent: agent.heartbeat.version)),
)
