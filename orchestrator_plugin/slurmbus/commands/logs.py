"""``slurmbus logs``."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click

from slurmbus.client import SiteClient
from slurmbus.commands import site_log
from slurmbus.commands.array_view import ArrayView, TaskView
from slurmbus.commands.console import show_json
from slurmbus.commands.follow import follow_array, follow_job, job_exit_code
from slurmbus.commands.options import json_option, open_site, site_options
from slurmbus.commands.view import JobView, record_json
from slurmbus.errors import UnknownJob
from slurmbus.events import Finished, Gap, Output, StateChanged, TaskEvent, Waiting
from slurmbus.exits import INTERRUPTED, SUCCESS
from slurmbus.home import Home
from slurmbus.site import KEY_LENGTH
from slurmbus_protocol.messages import Record
from slurmbus_protocol.subjects import Stream


@click.command("logs")
@site_options
@click.option("--follow", "-f", is_flag=True, help="Until the job has ended; the exit code is then the job's.")
@click.option("--stderr", "only_stderr", is_flag=True, help="Only what the job wrote to stderr, on stdout.")
@click.option("--login", "log_in", is_flag=True, help="Of an agent: log in to see it, when no agent answers.")
@click.option("--task", type=click.IntRange(min=0), help="Only this task of a job array, as it is.")
@json_option
@click.argument("job", metavar="KEY|JOBID|SITE")
@click.pass_context
def command(
    context: click.Context,
    site: str | None,
    *,
    local: bool,
    follow: bool,
    only_stderr: bool,
    task: int | None,
    as_json: bool,
    log_in: bool,
    job: str,
) -> int:
    """Show what a job wrote to stdout and stderr, from its first byte; or the end of the log of a site's agent.

    The name of a site is taken for its agent, unless --site says that a job of that site is meant.

    The job is named by its key, by the beginning of its key or by its Slurm id (123, or 123_4 for a task of an array).
    Of a job array all tasks are shown, each line with its task in front.
    """
    home = Home.default()
    said_site = context.get_parameter_source("site") is click.core.ParameterSource.COMMANDLINE
    if not (said_site or local) and site_log.is_site(home, job):
        return site_log.show(home, job, follow=follow, log_in=log_in)
    client = open_site(site, local=local)
    record = _find(client, job, wait=follow)
    key = record.key if record is not None else job.strip().upper()
    if record is not None and record.tasks and task is None and "_" in job:
        task = record.task
    number = task if task is not None else 0
    view = JobView(client.site, as_json=as_json, quiet=not follow)
    if only_stderr:
        view.streams = {Stream.STDERR: sys.stdout.buffer}
    if record is not None and record.tasks and task is None:
        return _show_array(client, record, view, follow=follow)
    if follow:
        ended = follow_job(client, key, view, number)
        return INTERRUPTED if ended is None else job_exit_code(ended)
    if record is not None and number != record.task:
        record = client.record(key, number)
    if record is None:
        raise UnknownJob(f"site {client.site} has no task {number} of {key}")
    if as_json:
        show_json({"event": "state", "state": record.state, "record": record_json(record)})
    _show_present(client, key, view, whole=record.state.is_final, task=number)
    return SUCCESS


def _show_array(client: SiteClient, record: Record, view: JobView, *, follow: bool) -> int:
    """Show all tasks: to their ends, or what is there of each, one after the other."""
    records = client.task_records(record.key)
    array = ArrayView(view)
    if follow:
        ended = follow_array(client, record.key, records, array)
        if ended is None:
            return INTERRUPTED
        return next((code for one in ended if (code := job_exit_code(one)) != SUCCESS), SUCCESS)
    for task, one in sorted(records.items()):
        array.show(TaskEvent(record.key, task, StateChanged(one)))
        shown = TaskView(array, record.key, task)
        _show_present(client, record.key, shown, whole=one.state.is_final, task=task)
        array.show(TaskEvent(record.key, task, Finished(one)))
    return SUCCESS


def _find(client: SiteClient, job: str, *, wait: bool) -> Record | None:
    """Find the job; None when its record isn't there yet and somebody will wait for it."""
    try:
        return client.find(job)
    except UnknownJob:
        key = job.strip().upper()
        if wait and len(key) == KEY_LENGTH and client.is_expected(key):
            return None
        raise


def _show_present(client: SiteClient, key: str, view: JobView | TaskView, *, whole: bool, task: int = 0) -> None:
    """Show what the bus holds at this moment, or the whole of a job that has ended, from the spool if need be."""
    wanted: Mapping[tuple[int, Stream], int] = client.ends(key, task)
    heads: dict[tuple[int, Stream], int] = {}
    with client.follow(key, task=task) as events:
        while True:
            if not whole and client_has_all(heads, wanted):
                return
            event = next(events)
            if isinstance(event, Finished):
                return
            if isinstance(event, Waiting):
                view.show(event)
            elif isinstance(event, Output | Gap):
                view.show(event)
                length = len(event.data) if isinstance(event, Output) else event.length
                heads[event.start, event.stream] = event.offset + length


def client_has_all(heads: Mapping[tuple[int, Stream], int], wanted: Mapping[tuple[int, Stream], int]) -> bool:
    """Tell whether every stream has been shown up to where it was wanted."""
    return all(heads.get(key, 0) >= size for key, size in wanted.items())
