"""What becomes of an array on one site when a later attempt of its step asks for another site.

What that attempt asks for (partition, account, environment, folders) was put together for its own site, and a launch
handle names one site: so either all tasks are only followed where they are, or all are submitted on the new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dagster_slurmbus.array_launches import FoundArray, Place, has_failed
from dagster_slurmbus.reattach import OnChangedRequest
from dagster_slurmbus.values import wrong
from slurmbus_protocol.arrays import record_of_task
from slurmbus_protocol.messages import Record

Records = Mapping[str, Mapping[int, Record]]
"""What the other site knows, by key and number."""


def stays(
    wanted: Collection[str], found: FoundArray, records: Records, *, site: str, on_changed: OnChangedRequest
) -> bool:
    """Tell whether all tasks are followed where they are; else all are submitted on the site that is asked for.

    Args:
        wanted: the names of the tasks that are asked for.
        found: what an earlier attempt launched elsewhere.
        records: what is known there.
        site: the one that is asked for now.
        on_changed: what shall happen when something else is asked for; another site is.

    Raises:
        dagster.Failure: a person has to decide.
    """
    kept = [name for name in wanted if (place := found.tasks.get(name)) is not None and _is_kept(place, records)]
    if not kept or on_changed is OnChangedRequest.RESUBMIT:
        return False
    if on_changed is OnChangedRequest.REATTACH and len(kept) == len(wanted):
        return True
    why = "leaves the choice to you" if on_changed is OnChangedRequest.FAIL else "follows all of them or none"
    raise wrong(
        f"{len(kept)} of {len(wanted)} tasks run or have completed on site {found.site}, and this step asks for {site} "
        f"now; on_changed_request={on_changed.value!r} {why}: ask for {found.site} again, set it to 'resubmit' to run "
        f"all tasks on {site}, or re-execute all steps"
    )


def unfinished(found: FoundArray, records: Records) -> list[Place]:
    """Give the tasks that haven't ended, also those whose request may still turn up."""
    known = [(place, record_of_task(records.get(place.key, {}), place.index)) for place in found.tasks.values()]
    return [place for place, record in known if record is None or not record.state.is_final]


def _is_kept(place: Place, records: Records) -> bool:
    """Tell whether a task runs, or has succeeded, and nobody has cancelled it."""
    of_its_array = records.get(place.key, {})
    record = record_of_task(of_its_array, place.index)
    if record is None:  # its agent is about to make it, as it has for the others
        return bool(of_its_array)
    return not has_failed(record) and (record.cancel is None or record.state.is_final)
