"""``slurmbus down``."""

from __future__ import annotations

import click

from slurmbus.bootstrap import bus_process
from slurmbus.bootstrap.down import Down
from slurmbus.commands.console import note
from slurmbus.commands.up import Console
from slurmbus.home import Home


@click.command("down")
@click.argument("site")
@click.option("--purge", is_flag=True, help="Remove the agent's program and its keys there, too; never a job's files.")
@click.option("--no-input", is_flag=True, help="Never ask; fail instead.")
@click.option("--bus", "with_bus", is_flag=True, help="Also end the bus, if 'slurmbus up' started it.")
def command(site: str, *, purge: bool, no_input: bool, with_bus: bool) -> None:
    """End a site's agent, and what kept it running; jobs go on.

    This needs a login. 'slurmbus up SITE' brings it back, and what its jobs wrote meanwhile.
    """
    home = Home.default()
    note(f"slurmbus down {site}", bold=True)
    done = Down(home, site, Console(), batch=no_input).run(purge=purge)
    if with_bus and bus_process.stop(home):
        done.append("the bus of this machine has ended")
    for words in done:
        note(f"  {words}")
    note(f"{site} is down; its jobs go on" if done else f"{site} was down", colour="green", bold=True)
