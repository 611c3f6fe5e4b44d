"""``slurmbus demo``."""

from __future__ import annotations

import subprocess
import sys

import click


@click.command("demo")
@click.option("--site", metavar="SITE", help="Run the jobs there. [default: as processes of this machine]")
@click.option("--partition", help="In which partition of the site. [default: Slurm's own]")
@click.option("--ui", is_flag=True, help="Open the assets in Dagster's UI instead, until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Of Dagster's UI.")
def command(site: str | None, partition: str | None, ui: bool, port: int) -> int:
    """Run a small graph of assets: two jobs and a report.

    Nothing has to be set up for it, and nothing of it stays behind.
    """
    argv = [sys.executable, "-m", "dagster_slurmbus.demo", "--port", str(port)]
    argv += ["--site", site] if site else []
    argv += ["--partition", partition] if partition else []
    argv += ["--ui"] if ui else []
    process = subprocess.Popen(argv)  # Dagster is imported there only
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the child has it, too, and cleans up
            continue
