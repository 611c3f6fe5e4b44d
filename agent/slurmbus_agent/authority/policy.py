"""What a policy allows: (policy, request) -> refusal or nothing. Pure.

There may be two: the user's own, and above it one of the site that only root can write. A request has to pass both,
so the stricter one wins whatever it says.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
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
_NODE_COUNTS = re.compile(r"[0-9]{1,9}(-[0-9]{1,9}(:[0-9]{1,9})?)?(,[0-9]{1,9}(-[0-9]{1,9}(:[0-9]{1,9})?)?)*")
"""What is surely understood of several numbers of nodes: sbatch takes ``1k`` for 1024 and ``1m`` for 1048576."""
_FEATURE_COUNTS = re.compile(r"\*([0-9]{1,9})(?![\w.])")
"""``[rack1*3&rack2*2]``: so many nodes of each. Source: sbatch(1), ``--constraint``."""
_IMAGE_WORDS = frozenset(
    ("--nv", "--nvccli", "--rocm", "--cleanenv", "--contain", "--containall", "--no-home", "--writable-tmpfs")
)
"""Words for ``apptainer exec`` that bring no folder in. Source: apptainer exec --help."""
_ALSO: dict[str, tuple[str, ...]] = {"time_limit": ("unlimited_time",), "mem": ("all_memory",)}
"""Further fields that are said by an option."""


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
    accounts, QOS, nodes, time, jobs, folders or options are limited, since they could get around that."""
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


def refusal(
    policy: Policy, submit: Submit, signer: str, unfinished: int, real: Mapping[str, str] | None = None
) -> Refusal | None:
    """Give the first thing that the policy doesn't allow about a request; None when all of it is fine.

    Args:
        policy: the user's or the site's.
        submit: the request.
        signer: the public key that signed it.
        unfinished: how many jobs there are that haven't ended, besides this one.
        real: where symlinks lead, for the folders of the policy and of the request (:func:`folders_of`); what isn't
            among them is taken as it is written.
    """
    return next(_refusals(policy, submit, signer, unfinished, real or {}), None)


def folders_of(policy: Policy, submit: Submit) -> set[str]:
    """Give the folders whose symlinks matter for a request; none when the policy doesn't limit them."""
    return {*policy.folders, *(folder for _, folder in _paths(submit.job))} if policy.folders is not None else set()


def refusal_of_person(policy: Policy, signer: str, submitter: str) -> Refusal | None:
    """Give why a policy lets this signer and submitter do nothing at all; None when it does."""
    if policy.keys is not None and signer not in policy.keys:
        return Refusal("key", f"{signer[:16]}… isn't among the allowed keys", "sign with one that is")
    if policy.submitters is not None and not _fits(submitter, policy.submitters):
        return Refusal("submitter", f"{submitter!r} isn't allowed", f"allowed: {_some(policy.submitters)}")
    return None


def _refusals(
    policy: Policy, submit: Submit, signer: str, unfinished: int, real: Mapping[str, str]
) -> Iterator[Refusal]:
    person = refusal_of_person(policy, signer, submit.submitter)
    if person is not None:
        yield person
    job = submit.job
    yield from _names(policy, job.options)
    yield from _nodes(policy, job)
    yield from _time(policy, job.options)
    yield from _jobs(policy, job, unfinished)
    yield from _folders(policy, job, real)
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
        # An account is one name, also with a comma in it; lists have no blanks that sbatch would overlook.
        wrong = [name for name in ([asked] if field == "account" else asked.split(",")) if name not in allowed]
        if wrong:
            yield Refusal(field, f"{wrong[0]!r} isn't allowed", hint)


def _nodes(policy: Policy, job: JobSpec) -> Iterator[Refusal]:
    if policy.max_nodes is None:
        return
    most = most_nodes(job.options)
    if most is None:
        yield Refusal(
            "nodes",
            "the job doesn't say in plain numbers how many it takes at most",
            f"set nodes to {policy.max_nodes} or less",
        )
    elif most > policy.max_nodes:
        yield Refusal("nodes", f"{most} are more than {policy.max_nodes}", f"ask for {policy.max_nodes} or less")


def most_nodes(options: JobOptions) -> int | None:
    """Give how many nodes a job may get at most; None when its options don't say."""
    said = [number for number in (options.nodes, options.nodes_max) if number is not None]
    if options.node_counts is not None:
        if not _NODE_COUNTS.fullmatch(options.node_counts):
            return None
        ranges = (part.partition(":")[0].split("-") for part in options.node_counts.split(","))
        said += [int(number) for ends in ranges for number in ends]
    if not said and any(getattr(options, name) is not None for name in _PLACING):
        return None
    constraint = options.constraint or ""
    features = [int(number) for number in _FEATURE_COUNTS.findall(constraint)]
    if len(features) != constraint.count("*"):
        return None
    return max([*(said or [options.ntasks or 1]), sum(features)])


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


def _folders(policy: Policy, job: JobSpec, real: Mapping[str, str]) -> Iterator[Refusal]:
    allowed = policy.folders
    if allowed is None:
        return
    hint = f"allowed: {_some(allowed)}"
    really = tuple(real.get(folder, folder) for folder in allowed)
    for field, folder in _paths(job):
        if not _within(folder, allowed):
            yield Refusal(field, f"{folder!r} isn't in an allowed folder", hint)
        elif not _within(real.get(folder, folder), (*allowed, *really)):
            yield Refusal(field, f"{folder!r} is a link to {real[folder]!r}, which isn't in an allowed folder", hint)
    environment = job.environment
    if isinstance(environment, ImageEnvironment):
        for word in environment.options:
            if word not in _IMAGE_WORDS:
                words = "it may bring in folders besides the allowed ones"
                yield Refusal(f"environment.options[{word!r}]", words, "leave it out; name folders in binds")


def _paths(job: JobSpec) -> Iterator[tuple[str, str]]:
    """Give every path of a request by the name of its field, with what several programs split into several paths."""
    if job.cwd is not None:
        yield "cwd", job.cwd
    if job.work_base is not None:
        yield "work_base", job.work_base
    environment = job.environment
    if isinstance(environment, FolderEnvironment):
        yield "environment", environment.path
    elif isinstance(environment, ModulesEnvironment):
        # The shell splits at blanks, the command module at colons; it loads a file by its path, too.
        yield from (("environment.use", folder) for one in environment.use for folder in re.split(r"[\s:]", one))
        words = [word for one in environment.load for word in one.split()]
        yield from (("environment.load", word) for word in words if word[0] in "/.~$")
    elif isinstance(environment, ImageEnvironment):
        yield "environment", environment.path
        if "/" in environment.program:
            yield "environment.program", environment.program
        for bind in environment.binds:
            yield from (("environment.binds", one.partition(":")[0]) for one in bind.split(","))
    if job.options.container is not None:
        yield "container", job.options.container


def _within(folder: str, allowed: tuple[str, ...]) -> bool:
    path = PurePosixPath(folder)
    return path.is_absolute() and ".." not in path.parts and any(path.is_relative_to(one) for one in allowed)


def _options(policy: Policy, options: JobOptions) -> Iterator[Refusal]:
    unset = JobOptions()
    for name in policy.forbidden_options:
        if any(getattr(options, field) != getattr(unset, field) for field in _fields(name.replace("-", "_"))):
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


def _fields(name: str) -> set[str]:
    """Give the fields of JobOptions by which an option can be said: ``nodes`` also by ``nodes_max``."""
    same = {option.wire for option in OPTIONS if option.flag == name.replace("_", "-")} if name != "extra" else set()
    return {_WIRE.get(name, name), *same, *_ALSO.get(name, ())}


def _limits_options(policy: Policy) -> bool:
    limits = (policy.max_nodes, policy.max_time_minutes, policy.max_jobs, policy.folders)
    names = (policy.partitions, policy.accounts, policy.qos)
    return bool(policy.forbidden_options) or any(limit is not None for limit in (*limits, *names))


def _fits(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def _some(words: tuple[str, ...]) -> str:
    shown = ", ".join(words[:_SHOWN])
    return f"{shown}, …" if len(words) > _SHOWN else shown or "none"
