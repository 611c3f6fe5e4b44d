"""Finding the job that an earlier attempt of a step launched, and deciding what becomes of it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any

import dagster as dg
import msgspec
from dagster_pipes import PipesContextData

from dagster_slurmbus import _compat
from dagster_slurmbus.outcomes import succeeded
from dagster_slurmbus.values import wrong
from slurmbus_protocol.messages import JobSpec, Record

CLIENT = "slurmbus:"
"""What the client names of our launch handles begin with; the call follows."""
_AGAIN = "again:"
_PART_LENGTH = 16


class OnChangedRequest(StrEnum):
    """What happens when a later attempt asks for something else than the job that it finds."""

    RESUBMIT = "resubmit"
    """End the job when it still runs, wait for its end, and submit what is asked for now."""
    REATTACH = "reattach"
    """Follow the job that is there, and say so."""
    FAIL = "fail"
    """Fail the step and leave the job alone."""

    @classmethod
    def of(cls, value: str) -> OnChangedRequest:
        """Read a setting; ``ValueError`` names the choices."""
        try:
            return cls(value)
        except ValueError:
            raise ValueError(f"on_changed_request={value!r}: use {', '.join(cls)}") from None


class Choice(Enum):
    """What an attempt does with what it found."""

    SUBMIT = auto()
    """Nothing is there that could be followed: a new job."""
    REPEAT = auto()
    """The launch was written down, but the site knows no such job: the same request under the same key, so that a
    publish that did arrive isn't doubled."""
    FOLLOW = auto()
    """The job is there, running or completed."""
    REPLACE = auto()
    """Another job is asked for now: end the old one, then submit."""
    REFUSE = auto()
    """Another job is asked for now, and a person shall decide."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier attempt launched."""

    launch: _compat.FoundLaunch
    site: str
    request: str
    """The hash of what it asked for."""
    parts: Mapping[str, str]
    """The hashes of its parts."""
    again: Mapping[str, Any] | None = None
    """What an attempt with more memory or time noted of those before it; see ``dagster_slurmbus.again``."""

    @property
    def key(self) -> str:
        """The job's key."""
        return self.launch.key

    def changes(self, site: str, parts: Mapping[str, str]) -> str:
        """Name the parts of the request that are others now."""
        names = [name for name in {**self.parts, **parts} if self.parts.get(name) != parts.get(name)]
        return ", ".join([*(["site"] if site != self.site else []), *names])


def choose(record: Record | None, *, same: bool, on_changed: OnChangedRequest) -> Choice:
    """Decide about a job that an earlier attempt launched.

    Args:
        record: what the site knows of it; None when it knows nothing.
        same: whether the same is asked for now.
        on_changed: what shall happen when it isn't the same.
    """
    if record is not None and record.state.is_final and not succeeded(record):
        return Choice.SUBMIT
    if record is not None and record.cancel is not None and not record.state.is_final:
        return Choice.REPLACE
    if not same and on_changed is OnChangedRequest.FAIL:
        return Choice.REFUSE
    if not same and on_changed is OnChangedRequest.RESUBMIT:
        return Choice.SUBMIT if record is not None and record.state.is_final else Choice.REPLACE
    return Choice.REPEAT if record is None else Choice.FOLLOW


def request_parts(
    spec: JobSpec, run_id: str, partition: Mapping[str, str], secrets: Sequence[str] = ()
) -> dict[str, str]:
    """Hash each part of what a job asks for, so that a later attempt can tell whether it asks for the same.

    Of the Pipes context it takes what the user decides (extras, assets and their code versions), and leaves out what
    differs between attempts by itself. The run's id counts as the same wherever it stands.

    Args:
        spec: the job.
        run_id: the run's.
        partition: what names the run's partition or partitions.
        secrets: the names of its secret variables; of a value even a hash would say too much.
    """
    context: PipesContextData | None = json.loads(spec.pipes_context) if spec.pipes_context is not None else None
    parts: dict[str, object] = {
        "command": spec.plan,
        "files": sorted(spec.files, key=lambda file: file.path),
        "environment": spec.env,
        "resources": msgspec.structs.replace(spec.options, comment=None),
        "folders": (spec.cwd, spec.work_base),
        "outputs": (spec.outputs, spec.outputs_limit),
        "partition": partition,
    }
    if spec.environment is not None:
        parts["runs in"] = spec.environment
    if secrets:
        parts["secret variables"] = secrets
    if context is not None:
        parts |= {
            "extras": context["extras"],
            "assets": (sorted(context["asset_keys"] or ()), context["code_version_by_asset_key"]),
        }
    return {name: _digest(part, run_id)[:_PART_LENGTH] for name, part in parts.items()}


def request_hash(parts: Mapping[str, str]) -> str:
    """Hash all of it."""
    return _digest(parts)


def request_digest(part: object, run_id: str) -> str:
    """Hash a part of a request; the run's id counts as the same wherever it stands."""
    return _digest(part, run_id)


def _digest(part: object, run_id: str | None = None) -> str:
    data = msgspec.json.encode(part, order="sorted")
    if run_id is not None:
        data = data.replace(run_id.encode(), b"{run_id}")
    return hashlib.sha256(data).hexdigest()


class Launches:
    """What earlier attempts of this step launched, given to the calls of this attempt one by one. Safe in threads."""

    def __init__(self, found: Sequence[Found]) -> None:
        self._left = list(found)
        self._lock = threading.Lock()

    @classmethod
    def of(cls, context: dg.OpExecutionContext) -> Launches:
        """Give those of this attempt; looked up once, before it launches anything itself."""
        return _compat.attempt(context).kept("launches", lambda: cls(_find(context)))

    def __bool__(self) -> bool:
        """Tell whether any is left."""
        return bool(self._left)

    def take(self, client: str, site: str, parts: Mapping[str, str]) -> Found | None:
        """Give the launch that a call of this attempt goes on with; each is given once.

        The same call with the same request comes first; then the same request by another call, since calls from threads
        come in any order; then the same call with another request. Launches for another partition are never given.
        """
        request = request_hash(parts)
        with self._lock:
            left = [found for found in self._left if found.parts.get("partition") == parts.get("partition")]
            same_call = [found for found in left if found.launch.client == client]
            same_request = [found for found in left if (found.site, found.request) == (site, request)]
            both = [found for found in same_call if found in same_request]
            counted = [found for found in same_request if _is_counted(client) and _is_counted(found.launch.client)]
            chosen = next(iter([*both, *counted, *same_call]), None)
            if chosen is not None:
                self._left.remove(chosen)
            return chosen

    def take_again(self, client: str, parts: Mapping[str, str]) -> Found | None:
        """Give the last of the further attempts (with more memory or time) of a call, and forget the others."""
        with self._lock:
            numbers = {found.launch.client: _attempt_of(found.launch.client, client) for found in self._left}
            mine = [found for found in self._left if numbers[found.launch.client]]
            self._left = [found for found in self._left if found not in mine]
            fitting = [found for found in mine if found.parts.get("partition") == parts.get("partition")]
            return max(fitting, key=lambda found: numbers[found.launch.client], default=None)


def _find(context: dg.OpExecutionContext) -> list[Found]:
    found = []
    for launch in _compat.launches_of_step(context):
        if launch.client.startswith(CLIENT):
            extras = launch.extras
            parts = dict(extras.get("parts", {}))
            found.append(Found(launch, str(extras["site"]), str(extras["request"]), parts, extras.get("again")))
    return found


def launch_client(context: dg.OpExecutionContext, reattach_key: str | None) -> str:
    """Give the client name of a call's launch handle: its number within the attempt, or the user's own key.

    Dagster's own lookup finds the newest handle of a client name, so each call has a name of its own.
    """
    attempt = _compat.attempt(context)
    if reattach_key is None:
        return f"{CLIENT}{attempt.next_call()}"
    if not isinstance(reattach_key, str) or not reattach_key:
        raise wrong(f"reattach_key={reattach_key!r} isn't a text; nothing was submitted")
    if not attempt.is_new(reattach_key):
        raise wrong(f"reattach_key={reattach_key!r} was given to two calls of this step; give each its own")
    return f"{CLIENT}key:{reattach_key}"


def attempt_client(client: str, number: int) -> str:
    """Give the client name of a further attempt of a call; number 0 is the call's own."""
    return f"{CLIENT}{_AGAIN}{number}:{client.removeprefix(CLIENT)}" if number else client


def _attempt_of(client: str, call: str) -> int:
    """Tell which further attempt of a call this client name is; 0 when it is none."""
    begin, end = CLIENT + _AGAIN, f":{call.removeprefix(CLIENT)}"
    number = client.removeprefix(begin).removesuffix(end)
    return int(number) if client == f"{begin}{number}{end}" and number.isdecimal() else 0


def _is_counted(client: str) -> bool:
    return client.removeprefix(CLIENT).isdecimal()
