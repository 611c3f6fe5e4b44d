"""``slurmbus demo``: materialise a small graph here or on a site, or open it in Dagster's UI."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import dagster as dg
from rich.console import Console

from dagster_slurmbus.demo.costs import show_costs
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.exits import exit_code
from slurmbus.home import Home
from slurmbus.local import stop_local
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import Heartbeat, Ping

JOBS = ("samples", "estimate")
_DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
"""
_SHORT_LINES_YAML = """\
python_logs:
  dagster_handler_config:
    handlers:
      short:
        class: dagster_slurmbus.demo.short_lines.ShortLines
        level: INFO
"""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main() -> int:
    """Run the demo in a folder of its own that goes away afterwards; give the exit code."""
    parser = argparse.ArgumentParser(prog="slurmbus demo")
    parser.add_argument("--site")
    parser.add_argument("--partition")
    parser.add_argument("--ui", action="store_true")
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    if arguments.site:
        os.environ["SLURMBUS_DEMO_SITE"] = arguments.site
        if arguments.partition:
            os.environ["SLURMBUS_DEMO_PARTITION"] = arguments.partition
    else:
        os.environ.pop("SLURMBUS_DEMO_SITE", None)
    folder = Path(tempfile.mkdtemp(prefix="slurmbus-demo-"))
    try:
        if arguments.site:
            _check_site(arguments.site)
        _prepare(folder, local=not arguments.site, short_lines=not arguments.ui)
        return _serve(folder, arguments.port) if arguments.ui else _materialize(folder)
    except SlurmbusError as error:
        console.print(f"[red]slurmbus demo: {error.message}[/]")
        if error.hint:
            console.print(f"               {error.hint}")
        return exit_code(error)
    except KeyboardInterrupt:
        return 130
    finally:
        if not arguments.site:
            stop_local()
        shutil.rmtree(folder, ignore_errors=True)


def _check_site(site: str) -> None:
    """Find out before the first job whether the site's agent is there."""
    client = SiteClient(Connection.get(ConnectionSettings.of_site(Home.default(), site)), site)
    heartbeat = client.ask("info", Ping(sent_at=time.time()), Heartbeat)
    console.print(f"[bold blue]»[/] {site}: agent {heartbeat.agent_id} on {heartbeat.host}, {heartbeat.scheduler.kind}")


def _prepare(folder: Path, *, local: bool, short_lines: bool) -> None:
    for name in ("dagster", "results", *(("home",) if local else ())):
        (folder / name).mkdir(mode=0o700)
    os.environ["DAGSTER_HOME"] = str(folder / "dagster")
    os.environ["SLURMBUS_DEMO_RESULTS"] = str(folder / "results")
    if local:
        os.environ["SLURMBUS_HOME"] = str(folder / "home")
    (folder / "dagster" / "dagster.yaml").write_text(_DAGSTER_YAML + (_SHORT_LINES_YAML if short_lines else ""))


def _materialize(folder: Path) -> int:
    from dagster_slurmbus.demo.definitions import defs  # noqa: PLC0415 - reads the environment

    console.print("[bold blue]»[/] materialising samples → estimate → report")
    job = dg.Definitions.merge(defs, dg.Definitions(jobs=[dg.define_asset_job("demo")])).resolve_job_def("demo")
    instance = dg.DagsterInstance.get()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # that our dagster.yaml names a log handler
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        result = job.execute_in_process(instance=instance, run_config=quiet, raise_on_error=False)
    show_costs(instance, JOBS, console)
    if not result.success:
        console.print("[bold red]the run failed[/]: its reason stands above")
        return 1
    console.print((folder / "results" / "report.md").read_text(encoding="utf-8").splitlines()[-1])
    return 0


def _serve(folder: Path, port: int) -> int:
    console.print(f"[bold blue]»[/] Dagster's UI: http://127.0.0.1:{port} — Ctrl-C ends it and removes what it made")
    argv = [sys.executable, "-m", "dagster", "dev", "-m", "dagster_slurmbus.demo.definitions", "-p", str(port)]
    process = subprocess.Popen(argv, cwd=folder)
    try:
        return process.wait()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
