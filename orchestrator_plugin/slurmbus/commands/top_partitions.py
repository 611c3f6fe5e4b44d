"""The partitions of all sites in ``slurmbus top``, as their agents say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from slurmbus.commands.console import duration
from slurmbus.commands.top_frame import Column, table_of
from slurmbus.dashboard.partitions import PartitionsOf
from slurmbus_protocol.errors import SlurmbusError

_COLUMNS = (
    Column("SITE", 0),
    Column("PARTITION", 0),
    Column("STATE", 2),
    Column("NODES", 1, "right"),
    Column("CPUS", 4, "right"),
    Column("LONGEST", 5, "right"),
    Column("NODES BY STATE", 3),
)


@dataclass(slots=True)
class PartitionsFrame:
    """One frame.

    Args:
        sites: whose.
    """

    sites: list[str]
    _rows: dict[str, list[list[Text]]] = field(default_factory=dict)

    async def ask(self, partitions: PartitionsOf) -> None:
        """Ask all sites; each is shown as soon as it has answered."""
        await asyncio.gather(*(self._ask(partitions, site) for site in self.sites))

    async def _ask(self, partitions: PartitionsOf, site: str) -> None:
        try:
            self._rows[site] = [_row(site, one) for one in await partitions.of(site)]
        except SlurmbusError as error:
            self._rows[site] = [[Text(site, "bold"), Text(error.message, "dim"), *[Text()] * 5]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        asked = [[Text(site, "bold"), Text("…", "dim"), *[Text()] * 5] for site in self.sites if site not in self._rows]
        rows = [row for site in self.sites for row in self._rows.get(site, [])]
        yield table_of(_COLUMNS, [*rows, *asked], console.width)


def _row(site: str, found: dict[str, Any]) -> list[Text]:
    limit = found.get("max_time_minutes")
    states = ", ".join(f"{count} {state}" for state, count in found.get("node_states", {}).items())
    return [
        Text(site, "bold"),
        Text(f"{found['name']}*" if found.get("default") else found["name"]),
        Text(found["state"], "green" if found["state"] == "UP" else "yellow"),
        Text(f"{found['nodes']:,}"),
        Text(f"{found['cpus']:,}"),
        Text("" if limit is None else duration(limit * 60.0)),
        Text(states),
    ]
