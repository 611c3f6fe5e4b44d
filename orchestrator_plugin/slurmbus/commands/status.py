"""``slurmbus status``."""

from __future__ import annotations

from typing import Any

import click

from slurmbus.bootstrap.chain import Chain, Finding, Grade
from slurmbus.commands.console import note, show_json, show_table
from slurmbus.commands.options import json_option
from slurmbus.exits import SUCCESS, UNREACHABLE
from slurmbus.home import Home

COLUMNS = ("SITE", "AGENT", "WAY", "KEPT BY", "AUTHORITY", "PROBLEM")


@click.command("status")
@click.argument("site", required=False)
@json_option
def command(site: str | None, *, as_json: bool) -> int:
    """Show what stands at a site, or at all of them; nobody logs in for this.

    The exit code is 3 when a site's jobs can't come through; 'slurmbus doctor SITE' says why.
    """
    home = Home.default()
    names = [site] if site else [profile.name for profile in home.sites() if profile.login is not None]
    if not names:
        note("No site is up. Begin with 'slurmbus up NAME --host LOGIN-NODE'.")
        return SUCCESS
    rows = [_look(home, name) for name in names]
    if as_json:
        show_json(rows)
    else:
        cells = [tuple(str(row[column.lower().replace(" ", "_")]) for column in COLUMNS) for row in rows]
        show_table(COLUMNS, cells, ["red" if row["problem"] else "green" for row in rows])
    return UNREACHABLE if any(row["problem"] for row in rows) else SUCCESS


def _look(home: Home, site: str) -> dict[str, Any]:
    chain = Chain(home, site)
    found: dict[str, Finding] = {finding.what: finding for finding in chain.from_here(ask_slurm=False)}
    broken = [f"{one.what}: {one.words}" for one in found.values() if one.grade is Grade.BROKEN]
    agent = found.get("agent")
    return {
        "site": site,
        "agent": agent.words if agent else "unknown",
        "way": chain.journal.way if chain.journal else "",
        "kept_by": chain.journal.supervisor if chain.journal else "",
        "version": chain.journal.version if chain.journal else "",
        "authority": found["authority"].words,
        "problem": broken[0] if broken else "",
    }
