"""Where the tasks of an array went that earlier attempts of a step submitted, and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import msgspec

from dagster_slurmbus import _compat
from dagster_slurmbus.again import options_of
from dagster_slurmbus.outcomes import succeeded
from dagster_slurmbus.reattach import Choice, OnChangedRequest, choose
from dagster_slurmbus.values import wrong
from slurmbus_protocol.arrays import record_of_task
from slurmbus_protocol.messages import JobOptions, Record

CLIENT = "slurmbus-array:"
"""What the client names of arrays' launch handles begin with; the call follows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one task is: a task of an array of this key, and the hash of what it asks for."""

    key: str
    index: int
    digest: str
    before: tuple[str, ...] = ()
    """How its earlier attempts ended, each of which had less memory or time; see ``dagster_slurmbus.again``."""


@dataclass(frozen=True, slots=True)
class FoundArray:
    """What the last attempt knew: each of its tasks, whoever submitted it."""

    launch: _compat.FoundLaunch
    site: str
    parts: Mapping[str, str]
    tasks: Mapping[str, Place]
    """By name."""
    options: Mapping[str, JobOptions] = field(default_factory=dict)
    """What arrays of further attempts ask Slurm for, by key; the others ask for what the call does."""

    @property
    def keys(self) -> list[str]:
        """The keys of its arrays."""
        return list(dict.fromkeys(place.key for place in self.tasks.values()))

    def outdated(self) -> FoundArray:
        """Give the same for a call that shares something else among its tasks: none of these is what it asks for.

        So they count as changed also for later attempts, which compare themselves with that call.
        """
        return replace(self, tasks={name: replace(place, digest="") for name, place in self.tasks.items()})


def extras(
    site: str, parts: Mapping[str, str], tasks: Mapping[str, Place], options: Mapping[str, JobOptions] | None = None
) -> dict[str, Any]:
    """Give what a launch handle keeps: a later attempt finds all tasks in the newest one."""
    keys = sorted({place.key for place in tasks.values()})
    at = {key: number for number, key in enumerate(keys)}
    more = {key: msgspec.to_builtins(asked) for key, asked in (options or {}).items() if key in at}
    return {
        "site": site,
        "parts": dict(parts),
        "keys": keys,
        "tasks": {
            name: [at[place.key], place.index, place.digest, *([list(place.before)] if place.before else [])]
            for name, place in tasks.items()
        },
        **({"options": more} if more else {}),
    }


def find(context: dg.OpExecutionContext, client: str, parts: Mapping[str, str]) -> FoundArray | None:
    """Give what an earlier attempt of this step launched by this call, for the same partitions."""
    launches: list[_compat.FoundLaunch] = _compat.attempt(context).kept(
        "array launches", lambda: [one for one in _compat.launches_of_step(context) if one.client.startswith(CLIENT)]
    )
    for launch in launches:
        if launch.client != client or launch.extras["parts"].get("partition") != parts.get("partition"):
            continue
        keys: Sequence[str] = launch.extras["keys"]
        tasks = {
            name: Place(keys[at], index, digest, tuple(*before))
            for name, (at, index, digest, *before) in launch.extras["tasks"].items()
        }
        options = {key: options_of(asked) for key, asked in launch.extras.get("options", {}).items()}
        return FoundArray(launch, str(launch.extras["site"]), dict(launch.extras["parts"]), tasks, options)
    return None


def launch_client(context: dg.OpExecutionContext, reattach_key: str | None) -> str:
    """Give the client name of a call's launch handles: its number within the attempt, or the user's own key."""
    attempt = _compat.attempt(context)
    if reattach_key is None:
        return f"{CLIENT}{attempt.kept('array calls', _Calls).next()}"
    if not isinstance(reattach_key, str) or not reattach_key:
        raise wrong(f"reattach_key={reattach_key!r} isn't a text; nothing was submitted")
    if not attempt.is_new(f"{CLIENT}{reattach_key}"):
        raise wrong(f"reattach_key={reattach_key!r} was given to two calls of this step; give each its own")
    return f"{CLIENT}key:{reattach_key}"


class _Calls:
    def __init__(self) -> None:
        self._count = -1

    def next(self) -> int:
        self._count += 1
        return self._count


@dataclass(frozen=True, slots=True)
class Plan:
    """What an attempt does with the tasks that it finds."""

    follow: Mapping[str, Place]
    """They run, or have succeeded, or have failed and stay so."""
    submit: Sequence[str]
    """They have failed, ask for something else now, or are new."""
    end: Mapping[str, Place]
    """They still run, and something else is asked for: ended before anything is submitted."""
    repeat: str | None
    """The launch of this key was written down, but the site knows nothing of it: the same request once more."""
    changed: Sequence[str]
    """Tasks that ask for something else now."""
    failed: Sequence[str] = ()
    """Those of ``follow`` that have failed."""


def plan(
    wanted: Mapping[str, str],
    found: FoundArray | None,
    records: Mapping[str, Mapping[int, Record]],
    *,
    numbers: Mapping[str, int],
    same: bool,
    on_changed: OnChangedRequest,
    stays: Callable[[Place, Record], bool] = lambda _place, _record: False,
) -> Plan:
    """Decide for each task, as for a single job.

    Args:
        wanted: the hash of what each task asks for, by its name.
        found: what an earlier attempt launched.
        records: what the site knows, by key and number.
        numbers: the number that each task has now, by its name.
        same: whether what all tasks share is asked for now as then.
        on_changed: what shall happen when a task asks for something else.
        stays: tells of a task that has failed, and asks for the same now, whether it is left at that.
    """
    follow: dict[str, Place] = {}
    submit: list[str] = []
    end: dict[str, Place] = {}
    changed: list[str] = []
    lost = _unknown_keys(found, records)
    repeat = _repeatable(wanted, numbers, found, lost) if found is not None and same else None
    for name, digest in wanted.items():
        place = found.tasks.get(name) if found is not None else None
        if place is None:
            submit.append(name)
            continue
        alike = same and place.digest == digest
        if not alike:
            changed.append(name)
        record = record_of_task(records.get(place.key, {}), place.index)
        if place.key in lost:
            if place.key == repeat:
                follow[name] = place
            else:
                submit.append(name)
                end[name] = place  # should its request turn up after all
            continue
        stay = alike and record is not None and has_failed(record) and stays(place, record)
        match Choice.FOLLOW if stay else choose(record, same=alike, on_changed=on_changed):
            case Choice.FOLLOW | Choice.REPEAT:  # the agent is about to make the record of the latter
                follow[name] = place
            case Choice.REPLACE:
                end[name] = place
                submit.append(name)
            case Choice.SUBMIT:
                submit.append(name)
            case Choice.REFUSE:
                raise wrong(
                    f"task {name!r} of an earlier attempt is task {place.index} of job {place.key}, and it asks for "
                    "something else now; on_changed_request='fail' leaves the choice to you: set it to 'resubmit' or "
                    "'reattach', or re-execute all steps"
                )
    return Plan(follow, submit, end, repeat, changed, _failed(follow, records))


def has_failed(record: Record) -> bool:
    """Tell whether this is the end of a task, and no success."""
    return record.state.is_final and not succeeded(record)


def _failed(follow: Mapping[str, Place], records: Mapping[str, Mapping[int, Record]]) -> list[str]:
    known = {name: record_of_task(records.get(place.key, {}), place.index) for name, place in follow.items()}
    return [name for name, record in known.items() if record is not None and has_failed(record)]


def _unknown_keys(found: FoundArray | None, records: Mapping[str, Mapping[int, Record]]) -> set[str]:
    return {key for key in found.keys if not records.get(key)} if found is not None else set()


def _repeatable(
    wanted: Mapping[str, str], numbers: Mapping[str, int], found: FoundArray, lost: Iterable[str]
) -> str | None:
    """Give the key of a request that perhaps was never published, if it can be published again as it was."""
    keys = set(lost)
    tasks = {name: (place.index, place.digest) for name, place in found.tasks.items() if place.key in keys}
    asked = {name: (numbers.get(name), wanted.get(name)) for name in tasks}
    return next(iter(keys)) if len(keys) == 1 and asked == tasks else None
