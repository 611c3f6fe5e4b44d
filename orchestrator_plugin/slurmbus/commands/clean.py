"""``slurmbus clean``."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping

import click

from slurmbus.client import SiteClient
from slurmbus.commands.console import note, show_json, show_table, state_colour
from slurmbus.commands.options import json_option, open_site, site_options
from slurmbus.forgetting import KEPT, BusCleaner, Outcome, Wish
from slurmbus.home import Home
from slurmbus.local import LocalFolder

COLUMNS = ("KEY", "NAME", "STATE", "WHAT", "REASON")
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Age(click.ParamType[float]):
    """An age such as ``3d``."""

    name = "AGE"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give it in seconds."""
        match = _AGE.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is no age; write e.g. 3d, 12h, 30m or 90s", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command("clean")
@site_options
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be forgotten.")
@click.option("--older-than", metavar="AGE", type=Age(), help="E.g. 3d, 12h. [default: 7d, failed 30d, lost 90d]")
@click.option(
    "--outcome",
    type=click.Choice([*(kind.value for kind in Outcome), "all"]),
    default="all",
    show_default=True,
    help="Only jobs that ended like this.",
)
@click.option("--agent-gone", is_flag=True, help="Also jobs with a folder on the site: its agent never runs again.")
@json_option
def command(
    site: str | None,
    *,
    local: bool,
    dry_run: bool,
    older_than: float | None,
    outcome: str,
    agent_gone: bool,
    as_json: bool,
) -> int:
    """Forget finished jobs on the bus: their requests, their records, then their output.

    A job with a folder on the site is forgotten when its agent asks for it, by the settings there or by
    'slurmbus-agent clean'; the owner of the bus ('slurmbus bus run', the local helper) then does by itself what this
    command does. Jobs that no agent has a folder of are forgotten by age and outcome. Never an unfinished job, and none
    before its request has been expired for a day.
    """
    client = open_site(site, local=local)
    kinds = frozenset(Outcome) if outcome == "all" else frozenset({Outcome(outcome)})
    kept = {kind: KEPT[kind] if older_than is None else older_than for kind in kinds}
    code = _clean_spool(older_than, outcome, dry_run=dry_run) if local else 0
    wishes = client.connection.run(_forget(client, kept, agent_gone=agent_gone, dry_run=dry_run))
    if as_json:
        show_json([_as_json(wish) for wish in wishes])
        return code
    word = "would forget" if dry_run else "forgotten"
    show_table(COLUMNS, [_row(wish, word) for wish in wishes], [_colour(wish) for wish in wishes])
    note(f"{sum(not wish.kept for wish in wishes)} jobs {'would be forgotten' if dry_run else 'are forgotten'}")
    return code


async def _forget(client: SiteClient, kept: Mapping[Outcome, float], *, agent_gone: bool, dry_run: bool) -> list[Wish]:
    cleaner = BusCleaner(await client.connection.session.site_bus(client.site))
    asked = await cleaner.wishes(client.site)
    jobs = {wish.job for wish in asked}
    strays = [wish for wish in await cleaner.strays(client.site, kept, agent_gone=agent_gone) if wish.job not in jobs]
    return [await cleaner.forget(wish, dry_run=dry_run) for wish in (*asked, *strays)]


def _clean_spool(older_than: float | None, outcome: str, *, dry_run: bool) -> int:
    """Let the local site's agent clean its spool, on this machine; give its exit code."""
    folder = LocalFolder.of(Home.default())
    words = [sys.executable, "-m", "slurmbus_agent", "clean", "--site", "local", "--outcome", outcome]
    words += ["--config", str(folder.home.bundle_path("local"))]
    words += [] if older_than is None else ["--older-than", f"{older_than:.3f}s"]
    words += ["--dry-run"] if dry_run else []
    return subprocess.run(words, check=False, stdout=sys.stderr).returncode


def _row(wish: Wish, word: str) -> tuple[str, ...]:
    record = wish.record
    return (
        wish.job.key,
        record.name if record else "",
        record.state.value if record else "",
        "kept" if wish.kept else word,
        wish.kept or wish.why,
    )


def _colour(wish: Wish) -> str | None:
    if wish.kept:
        return "yellow"
    return state_colour(wish.record.state) if wish.record else None


def _as_json(wish: Wish) -> dict[str, object]:
    record = wish.record
    return {
        "key": wish.job.key,
        "task": wish.job.task,
        "name": record.name if record else None,
        "state": record.state if record else None,
        "forgotten": not wish.kept,
        "reason": wish.kept or wish.why,
    }
