"""The addresses of a job while it runs, as observations of its assets: in Dagster's UI they can be clicked there."""

from __future__ import annotations

import dagster as dg

from dagster_slurmbus import _compat
from dagster_slurmbus.metrics import facts_metadata, is_address
from dagster_slurmbus.outcomes import prefixed
from slurmbus_protocol.arrays import slurm_id
from slurmbus_protocol.messages import Record

MOST_OBSERVED = 20
"""Jobs (or tasks of an array) of one call whose addresses are observed, and assets of each: every one is an event."""


class Addresses:
    """Observes each address once in a run: Ray's dashboard, say.

    A step that materializes no asset has nothing that could be observed: there the line in its log must do.

    Args:
        context: of the step.
    """

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._context = context
        self._known: set[str] = set()
        self._observed = 0

    def take(self, record: Record, *, task: str | None = None, partition: str | None = None) -> None:
        """Observe what the launcher of a running start has found out, if it is news.

        An error is told and fails nothing.

        Args:
            record: the job's, or the task's.
            task: the name of a task of an array.
            partition: what the task is about, when that isn't the run's own partition.
        """
        start = record.starts[-1] if record.starts else None
        if start is None or start.ended_at is not None or record.state.is_final:
            return  # nobody answers there any more; the materialization has it all the same
        new = {value for value in start.facts.values() if is_address(value)} - self._known
        if not new or self._observed == MOST_OBSERVED:
            return
        self._known |= new
        self._observed += 1
        try:
            if new - _observed_before(self._context):
                self._observe(record, task, partition)
        except Exception as error:  # noqa: BLE001 - the job is well, whatever becomes of an event about it
            self._context.log.warning("the job's addresses can't be observed: %s", error)

    def _observe(self, record: Record, task: str | None, partition: str | None) -> None:
        about = {
            "task": dg.MetadataValue.text(task) if task else None,
            "key": dg.MetadataValue.text(record.key),
            "job_id": dg.MetadataValue.int(record.job_id) if record.job_id is not None else None,
        }
        metadata = {**facts_metadata(record), **prefixed(about)}
        for key in _compat.selected_assets(self._context)[:MOST_OBSERVED]:
            observation = dg.AssetObservation(
                asset_key=key,
                description=f"job {slurm_id(record) or record.key} runs: what can be reached of it until it ends",
                metadata=metadata,
                partition=_compat.partition_of_asset(self._context, key, partition),
            )
            self._context.log_event(observation)


def _observed_before(context: dg.OpExecutionContext) -> set[str]:
    """Give the addresses that earlier attempts of this step have observed in this run."""
    if _compat.is_invoked_directly(context):
        return set()
    entries = context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
    observed = [one.asset_observation for one in entries if one.step_key == _compat.step_key(context)]
    values = [value for one in observed if one is not None for value in one.metadata.values()]
    return {value.url for value in values if isinstance(value, dg.UrlMetadataValue) and value.url}
