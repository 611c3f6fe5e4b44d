"""What a policy allows: (policy, request) -> refusal or nothing. Pure.

There may be two: the user's own, and above it one of the site that only root can write. A request has to pass both,
so the stricter one wins whatever it says.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from slurmbus_agent.guest.limits import HostLimits
from slurmbus_protocol.errors import NotAllowed
from slurmbus_protocol.messages import (
    FolderEnvironment,
    ImageEnvironment,
    JobOptions,
    JobSpec,
    ModulesEnvironment,
    Positive,
    Submit,
)
from slurmbus_protocol.options import OPTIONS
from slurmbus_protocol.pinned import PublicKeyHex

Days = Annotated[float, msgspec.Meta(gt=0)]
_WIRE = {option.name: option.wire for option in OPTIONS}
_SHOWN = 8
"""Names in a hint."""
_PLACING = ("nodelist", "gpus", "resources", "container")
"""Options that may take a job to more nodes than it has tasks."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy file. What isn't named isn't limited."""

    submitters: tuple[str, ...] | None = None
    """``user@host`` as clients name themselves; ``*`` stands for anything. Keys are the proof, this is not."""
    keys: tuple[PublicKeyHex, ...] | None = None
    """Signing keys; whatever else is trusted doesn't count."""
    partitions: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None
    max_nodes: Positive | None = None
    """Of one job."""
    max_time_minutes: Positive | None = None
    max_jobs: Positive | None = None
    """Unfinished ones at the same time; each task of an array is one."""
    folders: tuple[str, ...] | None = None
    """Where jobs may work and take environments from, besides the spool: absolute, with all that is below."""
    forbidden_options: tuple[str, ...] = ()
    """By the names that ``slurmbus submit --option`` knows."""
    extra_options: tuple[str, ...] | None = None
    """Options of sbatch that Slurmbus has no name for. When this isn't set: any, but none as soon as partitions,
    accounts, QOS, nodes, time or folders are limited, since they could get around that."""
    authority_days: Days | None = None
    """The longest that a login may give authority for."""
    require_grant: bool = False
    """Only a grant that a trusted key has signed counts, not the age of the bundle."""
    control: Literal["signer", "trusted"] | None = None
    """Who may cancel a job: who signed its request (and the keys that succeed that one), or every trusted key."""

    limits: HostLimits = HostLimits()
    """What the agent may use of the login node and of the controller."""

    def problem(self) -> str | None:
        """Tell what is wrong with it, beyond the types of its fields."""
        for name in self.forbidden_options:
            if name.replace("-", "_") not in _WIRE and name != "extra":
                return f"forbidden_options names {name!r}, which is no option of a job"
        for folder in self.folders or ():
            path = PurePosixPath(folder)
            if not path.is_absolute() or ".." in path.parts:
                return f"folders names {folder!r}, which is no absolute path"
        return None


class PolicyRefused(NotAllowed):
    """The policy of the site doesn't allow this."""

    code = "policy"


@dataclass(frozen=True)
class Refusal:
    """What a policy doesn't allow, and what would help."""

    field: str
    reason: str
    hint: str

    def error(self, policy: str) -> PolicyRefused:
        """Give it as an error that names the policy."""
        return PolicyRefused(f"{self.field}: {self.reason} ({policy} doesn't allow it)", hint=self.hint)


def refusal(policy: Policy, submit: Submit, signer: str, unfinished: int) -> Refusal | None:
    """Give the first thing that the policy doesn't allow about a request; None when all of it is fine.

    Args:
        policy: the user's or the site's.
        submit: the request.
        signer: the public key that signed it.
        unfinished: how many jobs there are that haven't ended, besides this one.
    """
    return next(_refusals(policy, submit, signer, unfinished), None)


def refusal_of_person(policy: Policy, signer: str, submitter: str) -> Refusal | None:
    """Give why a policy lets this signer and submitter do nothing at all; None when it does."""
    if policy.keys is not None and signer not in policy.keys:
        return Refusal("key", f"{signer[:16]}… isn't among the allowed keys", "sign with one that is")
    if policy.submitters is not None and not _fits(submitter, policy.submitters):
        return Refusal("submitter", f"{submitter!r} isn't allowed", f"allowed: {_some(policy.submitters)}")
    return None


def _refusals(policy: Policy, submit: Submit, signer: str, unfinished: int) -> Iterator[Refusal]:
    person = refusal_of_person(policy, signer, submit.submitter)
    if person is not None:
        yield person
    job = submit.job
    yield from _names(policy, job.options)
    yield from _nodes(policy, job)
    yield from _time(policy, job.options)
    yield from _jobs(policy, job, unfinished)
    yield from _folders(policy, job)
    yield from _options(policy, job.options)


def _names(policy: Policy, options: JobOptions) -> Iterator[Refusal]:
    for field, asked, allowed in (
        ("partition", options.partition, policy.partitions),
        ("account", options.account, policy.accounts),
        ("qos", options.qos, policy.qos),
    ):
        if allowed is None:
            continue
        hint = f"allowed: {_some(allowed)}"
        if not asked:
            yield Refusal(field, "the job names none, and Slurm's default may be another one", hint)
            continue
        wrong = [name for name in asked.split(",") if name.strip() not in allowed]
        if wrong:
            yield Refusal(field, f"{wrong[0].strip()!r} isn't allowed", hint)


def _nodes(policy: Policy, job: JobSpec) -> Iterator[Refusal]:
    if policy.max_nodes is None:
        return
    most = most_nodes(job.options)
    if most is None:
        yield Refusal(
            "nodes", "the job doesn't say how many it takes at most", f"set nodes to {policy.max_nodes} or less"
        )
    elif most > policy.max_nodes:
        yield Refusal("nodes", f"{most} are more than {policy.max_nodes}", f"ask for {policy.max_nodes} or less")


def most_nodes(options: JobOptions) -> int | None:
    """Give how many nodes a job may get at most; None when its options don't say."""
    if options.node_counts is not None:
        parts = (part.partition(":")[0] for part in options.node_counts.split(","))
        return max((int(number) for part in parts for number in re.findall(r"\d+", part)), default=None)
    if options.nodes_max is not None:
        return max(options.nodes_max, options.nodes or 1)
    if options.nodes is not None:
        return options.nodes
    if any(getattr(options, name) is not None for name in _PLACING):
        return None
    return options.ntasks or 1


def _time(policy: Policy, options: JobOptions) -> Iterator[Refusal]:
    most = policy.max_time_minutes
    if most is None:
        return
    hint = f"set time_limit to {most} minutes or less"
    if options.unlimited_time:
        yield Refusal("time_limit", f"unlimited is more than {most} minutes", hint)
    elif options.time_limit_minutes is None:
        yield Refusal("time_limit", "the job names none, and the partition's may be longer", hint)
    elif options.time_limit_minutes > most:
        yield Refusal("time_limit", f"{options.time_limit_minutes} minutes are more than {most}", hint)


def _jobs(policy: Policy, job: JobSpec, unfinished: int) -> Iterator[Refusal]:
    wanted = max(1, len(job.tasks))
    if policy.max_jobs is not None and unfinished + wanted > policy.max_jobs:
        have = f"{unfinished} unfinished and {wanted} more" if unfinished else f"{wanted}"
        hint = "wait until some have ended" if wanted <= policy.max_jobs else "split the array"
        yield Refusal("jobs", f"{have} are more than {policy.max_jobs}", hint)


def _folders(policy: Policy, job: JobSpec) -> Iterator[Refusal]:
    if policy.folders is None:
        return
    for field, folder in _paths(job):
        if not _within(folder, policy.folders):
            yield Refusal(field, f"{folder!r} isn't in an allowed folder", f"allowed: {_some(policy.folders)}")


def _paths(job: JobSpec) -> Iterator[tuple[str, str]]:
    if job.cwd is not None:
        yield "cwd", job.cwd
    if job.work_base is not None:
        yield "work_base", job.work_base
    environment = job.environment
    if isinstance(environment, FolderEnvironment):
        yield "environment", environment.path
    elif isinstance(environment, ModulesEnvironment):
        yield from (("environment.use", folder) for folder in environment.use)
    elif isinstance(environment, ImageEnvironment):
        yield "environment", environment.path
        yield from (("environment.binds", bind.partition(":")[0]) for bind in environment.binds)
    if job.options.container is not None:
        yield "container", job.options.container


def _within(folder: str, allowed: tuple[str, ...]) -> bool:
    path = PurePosixPath(folder)
    return path.is_absolute() and ".." not in path.parts and any(path.is_relative_to(one) for one in allowed)


def _options(policy: Policy, options: JobOptions) -> Iterator[Refusal]:
    unset = JobOptions()
    for name in policy.forbidden_options:
        field = _WIRE.get(name.replace("-", "_"), name)
        if getattr(options, field) != getattr(unset, field):
            yield Refusal(name, "it may not be set", "leave it out")
    allowed = policy.extra_options
    if allowed is None:
        if not _limits_options(policy):
            return
        allowed = ()
    for name in options.extra:
        if name not in allowed:
            hint = f"allowed: {_some(allowed)}" if allowed else "leave it out, or add it to extra_options of the policy"
            yield Refusal(f"extra[{name!r}]", "it isn't among the allowed options", hint)


def _limits_options(policy: Policy) -> bool:
    limits = (policy.partitions, policy.accounts, policy.qos, policy.max_nodes, policy.max_time_minutes, policy.folders)
    return bool(policy.forbidden_options) or any(limit is not None for limit in limits)


def _fits(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def _some(words: tuple[str, ...]) -> str:
    shown = ", ".join(words[:_SHOWN])
    return f"{shown}, …" if len(words) > _SHOWN else shown or "none"
