"""Runs the weather graph: on a real Slurm cluster in containers, or as processes of this machine.

``make demo`` materialises it once and shows what each job cost; ``make dev`` leaves Dagster's UI open.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[2]
STATE = PROJECT / "build" / "demo"
SITE = "demo"
JOBS = ("features", "model")
DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
"""
SHORT_LINES_YAML = """\
python_logs:
  dagster_handler_config:
    handlers:
      short:
        class: dagster_slurmbus.demo.short_lines.ShortLines
        level: INFO
"""
AGENT_PATIENCE = 30.0

sys.path[:0] = [str(PROJECT / "containers"), str(HERE)]
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def say(text: str) -> None:
    """Show a step of the way."""
    console.print(f"[bold blue]»[/] {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["auto", "local", "cluster"], default="auto")
    parser.add_argument("--dev", action="store_true", help="leave Dagster's UI open until Ctrl-C")
    parser.add_argument("--port", type=int, default=3000, help="of Dagster's UI")
    arguments = parser.parse_args()
    prepare_folders(short_lines=not arguments.dev)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with where(arguments.mode), dashboard():
            return serve(arguments.port) if arguments.dev else materialize()
    except KeyboardInterrupt:
        return 130


def prepare_folders(*, short_lines: bool) -> None:
    """Begin with empty folders for Dagster, Slurmbus and the results."""
    shutil.rmtree(STATE, ignore_errors=True)
    for name, variable in (
        ("dagster", "DAGSTER_HOME"),
        ("slurmbus", "SLURMBUS_HOME"),
        ("results", "SLURMBUS_DEMO_RESULTS"),
    ):
        (STATE / name).mkdir(parents=True, mode=0o700)
        os.environ[variable] = str(STATE / name)
    (STATE / "dagster" / "dagster.yaml").write_text(DAGSTER_YAML + (SHORT_LINES_YAML if short_lines else ""))


@contextlib.contextmanager
def where(mode: str) -> Iterator[None]:
    """Have a place where jobs run: the cluster, or this machine; everything is stopped afterwards."""
    from slurmbus_cluster import engine_problem

    problem = engine_problem() if mode != "local" else None
    if mode == "cluster" and problem:
        raise SystemExit(f"MODE=cluster needs a container engine: {problem}")
    if mode == "local" or problem:
        say("local mode: jobs are processes of this machine" + (f" ({problem})" if problem else ""))
        if problem:
            say("for a real Slurm cluster: run 'make engine' once as root, then 'make demo' again")
        os.environ["SLURMBUS_DEMO_MODE"] = "local"
        with local_helper():
            yield
    else:
        os.environ.update(SLURMBUS_DEMO_MODE="slurm", SLURMBUS_DEMO_SITE=SITE)
        with cluster():
            yield


@contextlib.contextmanager
def local_helper() -> Iterator[None]:
    """Stop the helper that the first job starts."""
    from slurmbus.local import stop_local

    try:
        yield
    finally:
        say("stopping the local helper")
        stop_local()


@contextlib.contextmanager
def dashboard() -> Iterator[None]:
    """Serve the page that shows sites and jobs, live."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("slurmbus")), "dashboard"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in (process.stderr.readline(), process.stderr.readline()):
            say(line.strip())
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Have a Slurm cluster, a bus on this machine, and alice's agent on the login node."""
    from slurmbus.home import Home
    from slurmbus_cluster import Cluster
    from slurmbus_cluster.agents import AgentProcess, install_agent

    home = Home.default()
    with Cluster(say) as running:
        say("installing the agent on the login node")
        install_agent(running)
        home.add_site(SITE, scheduler="native", slurm_conf="/etc/slurm/slurm.conf")
        with bus(home, running.gateway), AgentProcess(running, SITE, home.bundle_path(SITE)) as agent:
            say("starting alice's agent on the login node")
            wait_for_agent(agent)
            yield
            say("removing the cluster")


@contextlib.contextmanager
def bus(home: Any, host: str) -> Iterator[None]:
    """Run the bus of this home on an address that the cluster's hosts reach."""
    from slurmbus.owner import LOOK_INTERVAL, ServerOwner

    stop, ready = threading.Event(), threading.Event()

    def own() -> None:  # the server dies with the thread that started it
        with ServerOwner(home, host) as owner:
            ready.set()
            while not stop.wait(LOOK_INTERVAL):
                owner.look()

    thread = threading.Thread(target=own)
    thread.start()
    try:
        if not ready.wait(AGENT_PATIENCE):
            raise SystemExit("the bus didn't come up")
        say(f"the bus listens on {home.bus_url()}")
        yield
    finally:
        stop.set()
        thread.join()


def wait_for_agent(agent: Any) -> None:
    """Wait until the site's agent answers, or show its log."""
    from slurmbus.client import SiteClient
    from slurmbus.connection import Connection, ConnectionSettings
    from slurmbus.home import Home
    from slurmbus_protocol.errors import SlurmbusError
    from slurmbus_protocol.messages import Heartbeat, Ping

    client = SiteClient(Connection.get(ConnectionSettings.of_site(Home.default(), SITE)), SITE)
    deadline = time.monotonic() + AGENT_PATIENCE
    while True:
        try:
            heartbeat = client.ask("info", Ping(sent_at=time.time()), Heartbeat)
        except SlurmbusError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"the agent doesn't answer: {error}\n{agent.log}") from error
            time.sleep(0.2)
        else:
            say(f"agent {heartbeat.agent_id} serves site {SITE} with the {heartbeat.scheduler.kind} scheduler")
            return


def materialize() -> int:
    """Materialise the graph and show what each job cost."""
    import dagster as dg
    from definitions import defs

    from dagster_slurmbus.demo.costs import show_costs

    job = dg.Definitions.merge(defs, dg.Definitions(jobs=[dg.define_asset_job("weather_report")]))
    say("materialising weather → features → model → report")
    instance = dg.DagsterInstance.get()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # that our dagster.yaml names a log handler
        result = job.resolve_job_def("weather_report").execute_in_process(
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    show_costs(instance, JOBS, console)
    if not result.success:
        console.print("[bold red]the run failed[/]: its reason stands above")
        return 1
    say(f"the plot that came back from the job: {STATE / 'results' / 'plot.png'}")
    say(f"the report: {STATE / 'results' / 'report.md'}")
    return 0


def serve(port: int) -> int:
    """Run Dagster's UI until Ctrl-C."""
    say(f"Dagster's UI: http://127.0.0.1:{port} — materialise the assets there; Ctrl-C ends everything")
    argv = [sys.executable, "-m", "dagster", "dev", "-f", str(HERE / "definitions.py"), "-p", str(port)]
    process = subprocess.Popen(argv, cwd=STATE)
    try:
        return process.wait()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
