"""Showing things: tables on a terminal, plain lines in a pipe, JSON for scripts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from slurmbus_protocol import logs
from slurmbus_protocol.states import FINAL, JobState

log = logging.getLogger(__name__)

Cell = str
_MINUTE = 59.5
_LONG = {"NAME", "NODES", "REASON", "BUS", "ALARMS"}
"""Columns that may take several lines on a narrow terminal."""
_GOOD, _BAD, _BUSY = "green", "red", "yellow"


def state_colour(state: JobState) -> str:
    """Give a state's colour."""
    if state is JobState.COMPLETED:
        return _GOOD
    return _BAD if state in FINAL else _BUSY


def show_json(value: Any) -> None:
    """Write one JSON document on one line."""
    click.echo(msgspec.json.encode(value))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], colours: Sequence[str | None]) -> None:
    """Write a table; one colour a row. In a pipe: tab-separated lines with a header."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    from rich.console import Console  # noqa: PLC0415 - takes longer than everything else together
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in _LONG)
    for row, colour in zip(rows, colours, strict=True):
        table.add_row(*(Text(cell, style=colour or "") for cell in row))
    Console().print(table)


def note(text: str, *, colour: str | None = None, bold: bool = False) -> None:
    """Write a line for the person, on stderr."""
    click.secho(text, err=True, fg=colour, bold=bold or None)


def tell(text: str, log_format: str, *, colour: str | None = None, bold: bool = False) -> None:
    """Say something of a command that serves: for a person, or as a line of its log."""
    if log_format == logs.JSON:
        log.info("%s", text)
    else:
        note(text, colour=colour, bold=bold)


def duration(seconds: float | None) -> str:
    """Write a duration: ``0.3 s``, or ``D-HH:MM:SS`` and its ends as Slurm does."""
    if seconds is None:
        return ""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    total = round(seconds)
    days, rest = divmod(total, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{left:02}"
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
