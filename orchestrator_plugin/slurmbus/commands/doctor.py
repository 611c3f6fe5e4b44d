"""``slurmbus doctor``."""

from __future__ import annotations

import sys

import click

from slurmbus.bootstrap.chain import Chain, Finding, Grade
from slurmbus.bootstrap.entering import visiting
from slurmbus.bootstrap.session import Remote
from slurmbus.commands.console import note, show_json
from slurmbus.commands.options import json_option
from slurmbus.commands.up import Console
from slurmbus.exits import SUCCESS, UNREACHABLE
from slurmbus.home import Home

_COLOURS = {Grade.FINE: "green", Grade.NOTE: "yellow", Grade.BROKEN: "red"}
_WIDTH = 18


@click.command("doctor")
@click.argument("site")
@click.option("--login/--no-login", "log_in", default=None, help="Look on the login node, too. [default: if it helps]")
@click.option("--trial", is_flag=True, help="Also run a small job.")
@json_option
def command(site: str, *, log_in: bool | None, trial: bool, as_json: bool) -> int:
    """Test every link of a site's chain, from this machine to its compute nodes, and explain what is broken.

    Without --login it asks only the bus. When no agent answers there and somebody is at the terminal, it logs in to see
    why. The exit code is 3 when jobs can't come through.
    """
    home = Home.default()
    chain = Chain(home, site)
    found = []
    for finding in chain.from_here():
        found.append(finding)
        _show(finding, as_json=as_json)
    well = not any(finding.grade is Grade.BROKEN for finding in found)
    if trial and well:
        found.append(chain.trial())
        _show(found[-1], as_json=as_json)
    if log_in is None:
        log_in = not well and sys.stdin.isatty() and not as_json
    if log_in:
        found += _there(home, site, chain, as_json=as_json)
    broken = [finding.what for finding in found if finding.grade is Grade.BROKEN]
    if not as_json:
        words = f"{site}: broken: {', '.join(broken)}" if broken else f"{site}: jobs come through"
        note(words, colour="red" if broken else "green", bold=True)
    return UNREACHABLE if broken else SUCCESS


def _there(home: Home, site: str, chain: Chain, *, as_json: bool) -> list[Finding]:
    console = Console()
    found = []
    with visiting(home, site, console) as master, Remote(master) as remote:
        console.progress("looking around there", 0, 0)
        for finding in chain.from_there(remote):
            console.clear()
            found.append(finding)
            _show(finding, as_json=as_json)
    return found


def _show(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        show_json({"what": finding.what, "grade": finding.grade.name, "words": finding.words, "hint": finding.hint})
        return
    grade = click.style(finding.grade.value, fg=_COLOURS[finding.grade])
    click.echo(f"{grade}  {finding.what:<{_WIDTH}} {finding.words}")
    if finding.hint and finding.grade is not Grade.FINE:
        click.echo(f"    {'':<{_WIDTH}} → {finding.hint}")
