"""Following a job to its end for a person or a script, and what happens at Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from slurmbus.client import SiteClient
from slurmbus.commands.array_view import ArrayView
from slurmbus.commands.console import note
from slurmbus.commands.options import site_argument
from slurmbus.commands.view import JobView
from slurmbus.events import Finished, StateChanged, Waiting
from slurmbus.exits import INTERRUPTED, JOB_FAILED, REFUSED, SUCCESS
from slurmbus.site import check_target
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

ACCEPT_PATIENCE = 10.0
"""Seconds that a command waits for an agent to take a request; usually it takes milliseconds."""


def follow_job(client: SiteClient, key: str, view: JobView, task: int = 0) -> Record | None:
    """Show a job until it has ended, and give its last record; None when the person pressed Ctrl-C."""
    try:
        with client.follow(key, task=task) as events:
            for event in events:
                view.show(event)
                if isinstance(event, Finished):
                    return event.record
    except KeyboardInterrupt:
        _tell_how_to_go_on(client, key, f" --task {task}" if task else "")
    return None


def follow_array(client: SiteClient, key: str, tasks: Collection[int], view: ArrayView) -> list[Record] | None:
    """Show the tasks of an array until all have ended, and give their records; None when the person pressed Ctrl-C."""
    ended = []
    try:
        with client.follow_tasks({key: tasks}) as events:
            for event in events:
                view.show(event)
                if isinstance(event.event, Finished):
                    ended.append(event.event.record)
    except KeyboardInterrupt:
        _tell_how_to_go_on(client, key, "")
        return None
    return ended


def _tell_how_to_go_on(client: SiteClient, key: str, task: str) -> None:
    site = site_argument(client)
    note(f"\nThe job goes on. Follow it again: slurmbus logs -f {site} {key}{task}")
    note(f"                 End it:          slurmbus cancel {site} {key}{task}")


def wait_for_agent(client: SiteClient, key: str, accepted: Callable[[Record], bool], task: int = 0) -> Record | None:
    """Wait until the site's agent has made a request durable, and give the record that shows it.

    None, and a word about why, when there is no agent or it doesn't do so within ACCEPT_PATIENCE seconds.
    """
    view = JobView(client.site)
    deadline = time.monotonic() + ACCEPT_PATIENCE
    with client.follow(key, task=task, streams=False, patience=ACCEPT_PATIENCE / 10) as events:
        while (left := deadline - time.monotonic()) > 0:
            event = events.wait(left)
            if isinstance(event, Finished) or (isinstance(event, StateChanged) and accepted(event.record)):
                return event.record
            if isinstance(event, Waiting):
                view.show(event)
                if event.bus_reachable and (event.agent is None or not event.agent.alive):
                    break
    note(f"slurmbus: the request is kept on the bus; the agent of site {client.site} takes it as soon as it can")
    return None


def tell_waiting(text: str) -> None:
    """Tell what the command is waiting for."""
    note(f"slurmbus: waiting: {text}", colour="yellow")


def finish(client: SiteClient, record: Record | None, folder: Path, *, quiet: bool) -> int:
    """Fetch what came back into a folder, and give the exit code."""
    if record is None:
        return INTERRUPTED
    for ref in record.outputs:
        check_target(ref.path)
        client.download(ref, folder / ref.path)
        if not quiet:
            note(f"slurmbus: wrote {folder / ref.path} ({ref.size:,} bytes)")
    code = job_exit_code(record)
    if record.outputs_error:
        note(f"slurmbus: an output is missing: {record.outputs_error}", colour="red")
        return JOB_FAILED if code == SUCCESS else code
    return code


def job_exit_code(record: Record) -> int:
    """Give the exit code of a job that has ended."""
    if record.state is JobState.COMPLETED:
        return SUCCESS
    return REFUSED if record.state is JobState.REJECTED else JOB_FAILED
