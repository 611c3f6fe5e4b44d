"""``slurmbus cancel``."""

from __future__ import annotations

import click

from slurmbus.client import SiteClient
from slurmbus.commands.console import note
from slurmbus.commands.follow import tell_waiting, wait_for_agent
from slurmbus.commands.options import open_site, site_options
from slurmbus.errors import UnknownJob, check_refusal
from slurmbus.site import KEY_LENGTH
from slurmbus_protocol.arrays import compact
from slurmbus_protocol.messages import Record


@click.command("cancel")
@site_options
@click.option("--reason", default="", help="Kept with the job.")
@click.option("--task", type=click.IntRange(min=0), help="Only this task of a job array.")
@click.argument("job", metavar="KEY|JOBID")
def command(site: str | None, *, local: bool, reason: str, task: int | None, job: str) -> None:
    """Ask for a job's end; of a job array, for that of all its tasks.

    The request is kept until the job has ended, also when no agent runs at the moment, or when the job comes back after
    a requeue.
    """
    client = open_site(site, local=local)
    key = job.strip().upper()
    try:
        record = client.find(job)
    except UnknownJob:
        if len(key) < KEY_LENGTH:
            raise
        # Submitted, but no agent has taken it yet: the cancel waits for it.
    else:
        key = record.key
        if record.tasks and task is None and "_" in job:  # as Slurm names one of them
            task = record.task
        unfinished = [one for one in _meant(client, record, task) if not one.state.is_final]
        if not unfinished:
            note(f"{_named(key, task)} has already ended: {record.state}")
            return
        _cancel(client, key, reason, task, min(one.task for one in unfinished))
        return
    _cancel(client, key, reason, task, task or 0)


def _cancel(client: SiteClient, key: str, reason: str, task: int | None, shown: int) -> None:
    """Ask for the end, and wait for the agent's yes or no in the record of the task that shows it."""
    control = client.cancel(key, reason, tell=tell_waiting, task=task)
    note(f"asked site {client.site} to end {_named(key, task)}")

    def is_answered(record: Record) -> bool:
        return record.cancel is not None or (record.refused is not None and record.refused.id == control)

    record = wait_for_agent(client, key, is_answered, shown)
    if record is not None:
        check_refusal(record, control)


def _meant(client: SiteClient, record: Record, task: int | None) -> list[Record]:
    """Give the jobs that shall end; UnknownJob when an array has no such task."""
    if not record.tasks:
        return [record]
    records = client.task_records(record.key)
    if task is None:
        return list(records.values())
    if task not in records:
        raise UnknownJob(f"array {record.key} has no task {task}", hint=f"its tasks: {compact(records)}")
    return [records[task]]


def _named(key: str, task: int | None) -> str:
    return key if task is None else f"task {task} of {key}"
