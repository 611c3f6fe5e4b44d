"""``slurmbus submit``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from slurmbus import job_options
from slurmbus.client import SiteClient
from slurmbus.commands.console import note, show_json
from slurmbus.commands.follow import finish, follow_job, tell_waiting, wait_for_agent
from slurmbus.commands.options import json_option, open_site, site_options
from slurmbus.commands.view import JobView
from slurmbus.events import Finished, StateChanged
from slurmbus.exits import REFUSED, SUCCESS
from slurmbus.secret_env import secret_values
from slurmbus_protocol import traces
from slurmbus_protocol.environments import check_name
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import CommandPlan, FileRef, JobOptions, JobSpec, NamedEnvironment
from slurmbus_protocol.states import JobState

_NAMED = {name: name for name in ("partition", "account", "qos", "nodes", "ntasks", "cpus", "mem")} | {
    "time": "time_limit",
    "gpus": "gpus_per_node",
}
"""The options that have a flag of their own here."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@click.command("submit", context_settings={"allow_interspersed_args": False})
@site_options
@click.option("--name", help="The job's name; by default the command's.")
@click.option("--partition", "-p", metavar="NAME")
@click.option("--time", "-t", metavar="TIME", help="As Slurm writes it: 90 (minutes), 00:10:00, 1-00:00.")
@click.option("--cpus", "-c", type=click.IntRange(min=1), help="CPUs per task.")
@click.option("--mem", metavar="SIZE", help="Memory per node: 500M, 1G, or MiB.")
@click.option("--gpus", metavar="[TYPE:]N", help="GPUs per node.")
@click.option("--nodes", "-N", metavar="N[-MAX]")
@click.option("--ntasks", "-n", type=click.IntRange(min=1))
@click.option("--account", "-A", metavar="NAME")
@click.option("--qos", "-q", metavar="NAME")
@click.option(
    "--option",
    "words",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Any other option of sbatch: --option time-min=10 --option contiguous.",
)
@click.option("--env", "-e", "variables", multiple=True, metavar="K=V", help="A variable for the job; K alone copies.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME",
    help="A variable of this shell for the job whose value only the job and the site's agent can read.",
)
@click.option("--environment", metavar="NAME|HASH", help="What it runs in: see 'slurmbus env list' and 'env push'.")
@click.option(
    "--file", "-f", "files", multiple=True, metavar="PATH[:TARGET]", help="A file to put into the job's folder."
)
@click.option("--output", "-o", "outputs", multiple=True, metavar="PATH", help="A file that comes back to this folder.")
@click.option("--follow/--no-follow", default=True, help="Show the job until it ends. [default: follow]")
@json_option
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def command(
    site: str | None,
    *,
    local: bool,
    follow: bool,
    as_json: bool,
    files: tuple[str, ...],
    **request: Any,
) -> int:
    """Run a command as a job and follow it.

    Its output comes as it is written, to stdout and stderr; states are told on stderr. Ctrl-C leaves the job running.

    Example: slurmbus submit --site leonardo --time 00:10:00 -c 2 -f train.py -o model.bin -- python3 train.py
    """
    options = _options(request)  # before anything is opened: mistakes come at once
    name = _name(request["name"], request["argv"][0])
    env = dict(_variable(item) for item in request["variables"])
    secret_env = secret_values(request["secrets"], "--secret")
    environment = NamedEnvironment(name=check_name(request["environment"])) if request["environment"] else None
    sources = [_source(item) for item in files]
    client = open_site(site, local=local)
    job = JobSpec(
        name=name,
        plan=CommandPlan(argv=request["argv"]),
        options=options,
        env=env,
        files=_upload(client, sources),
        outputs=request["outputs"],
        environment=environment,
        trace=traces.from_variables(os.environ),
    )
    key = client.submit(job, tell=tell_waiting, secret_env=secret_env)
    if not follow:
        if as_json:
            show_json({"key": key, "site": client.site})
        else:
            click.echo(key)
        return _accepted(client, key)
    if as_json:
        show_json({"event": "submitted", "key": key, "site": client.site})
    else:
        note(f"submitted {key} to {client.site}", bold=True)
    record = follow_job(client, key, JobView(client.site, as_json=as_json))
    return finish(client, record, Path(), quiet=as_json)


def _accepted(client: SiteClient, key: str) -> int:
    """Wait for the agent's yes or no, as far as it comes soon, and give the exit code."""
    record = wait_for_agent(client, key, lambda _: True)
    if record is None or record.state is not JobState.REJECTED:
        return SUCCESS
    view = JobView(client.site)
    view.show(StateChanged(record))
    view.show(Finished(record))
    return REFUSED


def _options(request: dict[str, Any]) -> JobOptions:
    named = [job_options.read({option: request[name]}, f"--{name}") for name, option in _NAMED.items()]
    return job_options.merge(*named, job_options.read_words(request["words"], "--option"))


def _name(name: str | None, program: str) -> str:
    if name is None:
        return re.sub(r"[^A-Za-z0-9_-]", "-", Path(program).name)[:64] or "job"
    if not _NAME.fullmatch(name):
        raise InvalidSetting(f"--name={name!r} can't be used", hint="1 to 64 of A-Z, a-z, 0-9, '-' and '_'")
    return name


def _variable(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise InvalidSetting(f"--env={item!r} names no variable", hint="write NAME=VALUE")
    if equals:
        return name, value
    if name not in os.environ:
        raise InvalidSetting(f"--env={name}: the variable isn't set here", hint="write NAME=VALUE")
    return name, os.environ[name]


def _source(item: str) -> tuple[Path, str]:
    path, colon, target = item.rpartition(":")
    if not colon or Path(item).exists():
        path, target = item, Path(item).name
    source = Path(path).expanduser()
    if not source.is_file():
        raise InvalidSetting(f"--file={item}: {source} is no file")
    return source, target


def _upload(client: SiteClient, sources: list[tuple[Path, str]]) -> tuple[FileRef, ...]:
    return tuple(client.upload(path, target) for path, target in sources)
