"""``slurmbus``: submit, list, follow and cancel jobs without Dagster at hand.

Each command lives in a module of :mod:`slurmbus.commands` that is imported when it runs, so that ``slurmbus --help``
answers at once. Exit codes: 0 success, 1 the job failed, 2 wrong usage, 3 unreachable, 4 refused.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from slurmbus.exits import INTERRUPTED, USAGE, exit_code
from slurmbus_protocol.errors import SlurmbusError

COMMANDS = {
    "demo": "Run a small graph here, or on a site.",
    "up": "Log in once at a site, and have its agent there.",
    "status": "Show what stands at a site.",
    "doctor": "Test every link of a site's chain, and explain.",
    "down": "Take a site's agent away; jobs go on.",
    "submit": "Run a command as a job and follow it.",
    "jobs": "List jobs.",
    "logs": "Show what a job, or a site's agent, wrote.",
    "cancel": "End a job.",
    "requeue": "Send a running job back to the queue.",
    "dashboard": "Serve a page that shows sites and jobs, live.",
    "clean": "Forget finished jobs.",
    "env": "List, push and remove environments.",
    "sites": "List, add, show and remove sites.",
    "keys": "List, replace, revoke and trust signing keys.",
    "top": "Watch sites, agents and jobs in the terminal.",
    "metrics": "Serve metrics for Prometheus.",
    "bus": "Run this home's own NATS server, or set up a team's.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Give the names in the order in which they are explained."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"slurmbus.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Explain the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _say_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        metadata = importlib.import_module("importlib.metadata")
        click.echo(f"slurmbus {metadata.version('dagster-slurmbus')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_say_version, help="Show the version."
)
def root() -> None:
    """Run and follow jobs on Slurm clusters, over a message bus.

    Exit codes: 0 success, 1 the job failed, 2 wrong usage, 3 unreachable, 4 refused.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code; what a person did wrong is told without a traceback."""
    try:
        result = root.main(args=arguments, prog_name="slurmbus", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return USAGE
    except SlurmbusError as error:
        click.secho(f"slurmbus: {error.message}", err=True, fg="red")
        if error.hint:
            click.echo(f"          {error.hint}", err=True)
        return exit_code(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # e.g. `slurmbus logs … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    return result if isinstance(result, int) else 0
