"""A sensor that ends jobs whose runs are over: nobody will come back for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

import dagster as dg

from dagster_slurmbus import _compat
from dagster_slurmbus.invocation import DEPLOYMENT_LABEL, RUN_LABEL
from dagster_slurmbus.pipes import PipesSlurmClient
from dagster_slurmbus.resource_sites import pipes_client_of
from slurmbus.client import SiteClient
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import Record

OnOrphan = Literal["cancel", "report"]
INTERVAL = 60
"""Seconds between two looks: one reads the site's records from the bus and asks Dagster about each unfinished one."""
MOST_LINES = 20


class Verdict(Enum):
    """What becomes of an unfinished job."""

    LEAVE = auto()
    """Somebody follows it or may do so."""
    WAIT = auto()
    """Its run has failed: a re-execution from failure would go on with it."""
    ORPHAN = auto()
    """Nobody will come back for it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and why."""

    verdict: Verdict
    why: str = ""


def slurmbus_reconcile_sensor(
    *resource_keys: str,
    name: str = "slurmbus_reconcile",
    on_orphan: OnOrphan = "cancel",
    cancel_failed_after: float | None = None,
    minimum_interval_seconds: int = INTERVAL,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Give a sensor that looks after jobs that go on although their Dagster run is over.

    A step cancels its job when its run is terminated. When it can't any more (the run was cancelled by force, deleted,
    or its process was killed), this sensor does. It looks only at jobs of its own Dagster deployment, and never touches
    one whose run, or a re-execution of it from failure, is unfinished. What it did stands in the tick's result.

    Args:
        resource_keys: of the resources whose sites are looked at: ``ComputeResource``, ``SlurmResource`` or
            ``PipesSlurmClient``.
        name: of the sensor.
        on_orphan: ``cancel`` ends a job whose run was cancelled, deleted, or has succeeded without it; ``report`` only
            says so.
        cancel_failed_after: seconds after which the job of a *failed* run counts as such a job. By default it never
            does: a redeploy or an eviction fails the run, and a re-execution from failure goes on with the job.
        minimum_interval_seconds: between two looks.
        default_status: whether the sensor runs without being switched on.
    """
    if not resource_keys:
        raise ValueError("slurmbus_reconcile_sensor needs the keys of the resources whose jobs it looks after")
    if on_orphan not in {"cancel", "report"}:
        raise ValueError(f"on_orphan={on_orphan!r}: use 'cancel' or 'report'")

    @dg.sensor(
        name=name,
        required_resource_keys=set(resource_keys),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Ends Slurm jobs whose Dagster run is over.",
    )
    def reconcile(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        told: list[str] = []
        for client in _clients(context, resource_keys):
            try:
                told += reconcile_site(
                    context.instance,
                    client.connect(),
                    cancel=on_orphan == "cancel",
                    cancel_failed_after=cancel_failed_after,
                )
            except SlurmbusError as error:  # another site may answer
                told.append(f"site {client.site} can't be asked: {error}")
        for line in told:
            context.log.info(line)
        more = [f"and {len(told) - MOST_LINES} more"] if len(told) > MOST_LINES else []
        return dg.SkipReason("; ".join([*told[:MOST_LINES], *more]) or "no job has lost its run")

    return reconcile


def reconcile_site(
    instance: dg.DagsterInstance, client: SiteClient, *, cancel: bool, cancel_failed_after: float | None = None
) -> list[str]:
    """Look at the unfinished jobs of one site, and give what was found and done in a line for each.

    Args:
        instance: the Dagster deployment; jobs of others are left alone.
        client: of the site.
        cancel: end the jobs that nobody will come back for.
        cancel_failed_after: seconds after its run's failure after which a job is one of those; None is never.
    """
    deployment = _compat.instance_id(instance)
    if deployment is None:
        return []
    ours = [
        record
        for record in client.records()
        if record.labels.get(DEPLOYMENT_LABEL) == deployment and not record.state.is_final and record.cancel is None
    ]
    told = []
    claimed = claimed_runs(instance) if ours else frozenset()  # later than the records: who came since is in it
    for record, unfinished in _arrays_once(ours):
        run_id = record.labels.get(RUN_LABEL, "")
        judgement = judge(instance, run_id, cancel_failed_after) if run_id not in claimed else Judgement(Verdict.LEAVE)
        if judgement.verdict is Verdict.LEAVE:
            continue
        done = "is left running"
        if judgement.verdict is Verdict.ORPHAN and cancel:
            client.cancel(record.key, f"reconciled: {judgement.why}")
            done = "was cancelled"
        tasks = f" ({unfinished} tasks)" if record.tasks else ""
        told.append(f"{_name(record)}{tasks} on site {client.site} {done}: {judgement.why}")
    return told


def _arrays_once(records: Sequence[Record]) -> list[tuple[Record, int]]:
    """Give each single job, and of each array one task with how many there are."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    return [(found[0], len(found)) for found in by_key.values()]


def claimed_runs(instance: dg.DagsterInstance) -> frozenset[str]:
    """Give the runs whose jobs an unfinished run may follow: itself, and those that it goes on with after a failure."""
    claimed: set[str] = set()
    for unfinished in _compat.unfinished_runs(instance):
        run: dg.DagsterRun | None = unfinished
        while run is not None and run.run_id not in claimed:
            claimed.add(run.run_id)
            parent = run.parent_run_id if _compat.may_be_from_failure(instance, run) else None
            run = instance.get_run_by_id(parent) if parent else None
            if parent is not None and run is None:  # deleted, but its job may be followed already
                claimed.add(parent)
    return frozenset(claimed)


def judge(instance: dg.DagsterInstance, run_id: str, cancel_failed_after: float | None) -> Judgement:
    """Judge a job that no unfinished run follows, by the run that submitted it and by those that went on with it."""
    run = instance.get_run_by_id(run_id)
    runs = {run.run_id: run} if run is not None else {}
    runs |= {heir.run_id: heir for heir in _heirs(instance, run_id, _compat.related_runs(instance, run_id, run))}
    if any(not one.is_finished for one in runs.values()):  # since a moment ago
        return Judgement(Verdict.LEAVE)
    if not runs:
        return Judgement(Verdict.ORPHAN, f"run {run_id} was deleted")
    parents = {one.parent_run_id for one in runs.values() if one.run_id != run_id}
    last = [one for one in runs.values() if one.run_id not in parents]
    failed = [one.run_id for one in last if one.status is dg.DagsterRunStatus.FAILURE]
    if not failed:
        return Judgement(Verdict.ORPHAN, f"run {last[0].run_id} is over ({last[0].status.value})")
    since = time.time() - max(_compat.end_of_run(instance, one) for one in failed)
    why = f"run {failed[0]} failed {since:.0f} s ago"
    if cancel_failed_after is not None and since > cancel_failed_after:
        return Judgement(Verdict.ORPHAN, why)
    return Judgement(Verdict.WAIT, f"{why}; a re-execution from failure goes on with the job")


def _heirs(instance: dg.DagsterInstance, run_id: str, related: Sequence[dg.DagsterRun]) -> list[dg.DagsterRun]:
    """Give the re-executions from failure of a run, and theirs."""
    found: list[dg.DagsterRun] = []
    ancestors, grown = {run_id}, True
    while grown:
        heirs = [
            run
            for run in related
            if run.parent_run_id in ancestors
            and run.run_id not in ancestors
            and _compat.may_be_from_failure(instance, run)
        ]
        ancestors |= {run.run_id for run in heirs}
        found += heirs
        grown = bool(heirs)
    return found


def _clients(context: dg.SensorEvaluationContext, resource_keys: Iterable[str]) -> list[PipesSlurmClient]:
    found: dict[str | None, PipesSlurmClient] = {}
    for key in resource_keys:
        client = pipes_client_of(context.resources, key, "slurmbus_reconcile_sensor")
        found.setdefault(client.site, client)  # None is this machine
    return list(found.values())


def _name(record: Record) -> str:
    if record.job_id is None:
        return f"job {record.key}"
    return f"{'local' if record.scheduler == 'local' else 'Slurm'} job {record.job_id} ({record.key})"
