"""``slurmbus env``."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import click

from slurmbus.commands.clean import Age
from slurmbus.commands.console import duration, note, show_json, show_table
from slurmbus.commands.options import json_option, open_site, site_options
from slurmbus.environments.guessing import KINDS, make
from slurmbus.environments.shipping import Shipper
from slurmbus_protocol.environments import SHORTEST_DIGEST, check_name
from slurmbus_protocol.errors import UnknownEnvironment
from slurmbus_protocol.messages import InstalledEnvironment

COLUMNS = ("HASH", "NAME", "KIND", "PYTHON", "SIZE", "FILES", "USED", "JOBS")
_DIGITS = 12
_BYTES = 1024.0


@click.group("env")
def command() -> None:
    """List, push and remove the environments that are installed on a site."""


@command.command("list")
@site_options
@json_option
def list_command(site: str | None, *, local: bool, as_json: bool) -> None:
    """List the environments of a site, the last used one first, and the unfinished jobs that use them."""
    found = Shipper(open_site(site, local=local)).installed()
    if as_json:
        show_json(found.environments)
        return
    show_table(
        COLUMNS,
        [_row(one) for one in found.environments],
        ["green" if one.jobs else None for one in found.environments],
    )
    kept = f"for {found.unused_days:.0f} days" if found.unused_days < float("inf") else "for ever"
    size = sum(one.size for one in found.environments)
    note(f"{len(found.environments)} environments, {_human(size)}; unused ones are kept {kept}")


@command.command("push")
@site_options
@click.option("--name", metavar="NAME", help="By which jobs may name it from now on.")
@click.option("--kind", type=click.Choice(KINDS), help="What SOURCE is. [default: told by what it is called]")
@click.option("--python", default="", metavar="3.X", help="Of the site. [default: the one that its agent prefers]")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="uv: a dependency group that goes along.")
@click.option("--extra", "extras", multiple=True, metavar="NAME", help="uv: an extra of the project.")
@click.option("--project", is_flag=True, help="uv: the project itself goes along.")
@click.option(
    "--resolve", type=click.Choice(["here", "site"]), default="here", show_default=True, help="Who fetches packages."
)
@click.option("--environment", default="default", metavar="NAME", help="pixi: of the project.")
@click.option("--self-extracting", is_flag=True, help="pixi: bring pixi-unpack along.")
@click.option("--again", is_flag=True, help="Upload everything once more, and try again what failed.")
@click.argument("source")
def push(
    site: str | None, *, local: bool, source: str, name: str | None, kind: str | None, again: bool, **how: Any
) -> None:
    """Bring an environment to a site, have it installed, and print its hash.

    SOURCE is a folder with uv.lock or pixi.lock, a requirements.txt, a pylock.toml, a conda environment's folder, or an
    archive of conda-pack or pixi-pack. What the site has already isn't sent again.
    """
    if name is not None:
        check_name(name)
    environment = make(source, kind, **how)
    with _Bar() as bar:
        shipper = Shipper(open_site(site, local=local), bar)
        pack = shipper.pack(environment)
        shipper.upload(pack, again=again)
        path = shipper.install(pack, name, again=again)
    click.echo(pack.ref.digest)
    note(f"it is installed in {path}{f' and called {name}' if name else ''}")


@command.command("remove")
@site_options
@click.option("--unused-for", metavar="AGE", type=Age(), help="All that no job has used for so long, e.g. 30d.")
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be removed.")
@click.argument("names", nargs=-1, metavar="[NAME|HASH]...")
def remove(site: str | None, *, local: bool, names: tuple[str, ...], unused_for: float | None, dry_run: bool) -> None:
    """Remove environments by name or hash, or those that nobody uses. None that an unfinished job uses."""
    if bool(names) == (unused_for is not None):
        raise click.UsageError("name environments, or say --unused-for AGE: one of the two")
    shipper = Shipper(open_site(site, local=local))
    there = shipper.installed().environments
    if unused_for is None:
        chosen = [_find(there, name) for name in names]
    else:
        chosen = [one for one in there if time.time() - one.used_at > unused_for and not one.jobs]
    for one in chosen:
        if not dry_run:
            shipper.remove(one.digest)
        click.echo(f"{one.digest}\t{'would remove' if dry_run else 'removed'}\t{_human(one.size)}\t{_title(one)}")
    note(f"{len(chosen)} environments {'would be removed' if dry_run else 'are removed'}")


def _find(there: tuple[InstalledEnvironment, ...], name: str) -> InstalledEnvironment:
    fitting = [one for one in there if name in one.names]
    fitting = fitting or [one for one in there if len(name) >= SHORTEST_DIGEST and one.digest.startswith(name)]
    if len(fitting) != 1:
        raise UnknownEnvironment(f"{name!r} fits {len(fitting)} environments of the site")
    return fitting[0]


def _title(one: InstalledEnvironment) -> str:
    return ", ".join(one.names) or one.title


def _row(one: InstalledEnvironment) -> tuple[str, ...]:
    jobs = ", ".join(one.jobs[:2]) + (f" and {len(one.jobs) - 2} more" if one.jobs[2:] else "")
    used = duration(max(0.0, time.time() - one.used_at))
    return (
        one.digest[:_DIGITS],
        _title(one),
        one.kind,
        one.python,
        _human(one.size),
        f"{one.files:,}",
        f"{used} ago",
        jobs,
    )


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _BYTES:
            return f"{size:.0f} {unit}"
        size /= _BYTES
    return f"{size:.1f} TiB"


class _Bar:
    """Progress on stderr: a bar on a terminal, else a line whenever something else begins."""

    def __init__(self) -> None:
        self._doing = ""
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415 - takes longer than everything else together
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

            console = Console(stderr=True)
            self._live = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, doing: str, done: int, total: int) -> None:
        phase = doing.partition(",")[0]
        if self._live is None:
            if phase != self._doing:
                note(phase)
        else:
            if phase != self._doing or self._task is None:
                if self._task is not None:
                    self._live.remove_task(self._task)
                self._task = self._live.add_task(doing, total=total or None)
            self._live.update(self._task, description=doing, completed=done, total=total or None)
        self._doing = phase
