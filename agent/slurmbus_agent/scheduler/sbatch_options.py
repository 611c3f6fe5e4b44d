"""A job's options as arguments of sbatch."""

from __future__ import annotations

import re
from collections.abc import Callable

from slurmbus_agent.scheduler.base import Refused
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.options import OPTIONS, OTHER_WORDS, OWNED, Kind, Option, find

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_TELL_ABOUT_THEMSELVES = frozenset({"gres", "hint", "mem_bind", "gpu_bind", "tres_bind", "gpu_freq", "cpu_freq"})
"""Options whose value "help" makes sbatch print something and submit nothing."""
_WITHOUT_VALUE = frozenset({"propagate", "resv_ports"})
"""Options with a text that sbatch also takes without one. Source: sbatch(1)."""
_FLAGS = frozenset({option.flag for option in OPTIONS} | OWNED.keys() | OTHER_WORDS.keys())


def arguments(options: JobOptions) -> list[str]:
    """Give sbatch's arguments for these options.

    Left out are what a job gets however it is submitted: its name, script, folder, output, environment and comment.

    Raises:
        Refused: ``extra`` names what isn't the user's to set, or a value would keep sbatch from submitting.
    """
    _check_help(options)
    given: list[str] = []
    for option in OPTIONS:
        if option.name in _TOGETHER:
            given += _TOGETHER[option.name](options)
        elif option.flag not in _SAID:
            given += _plain(option, getattr(options, option.wire))
    for name, value in options.extra.items():
        _check_extra(name)
        given.append(_argument(name, value))
    if any("\0" in argument for argument in given):
        raise Refused("an option has a NUL character")
    return given


def _plain(option: Option, value: object) -> list[str]:
    if value is None or (option.kind is Kind.FLAG and not value):
        return []
    if option.kind is Kind.FLAG:
        return [f"--{option.flag}"]
    if option.kind is Kind.CHOICE:
        return [_argument(option.flag, _CHOICES.get(option.name, ("0", "1"))[bool(value)])]
    if option.kind is Kind.MEMORY:
        return [_argument(option.flag, f"{value}M")]
    if value == "" and option.name not in _WITHOUT_VALUE:  # sbatch would take the next argument for its value
        raise Refused(f"{option.name} is empty", hint="give it a value, or leave it out")
    return [_argument(option.flag, str(value))]


def _check_help(options: JobOptions) -> None:
    for name in _TELL_ABOUT_THEMSELVES:
        if str(getattr(options, name)).strip().lower() == "help":
            flag = name.replace("_", "-")
            raise Refused(f"{name}=help only prints something", hint=f"run 'sbatch --{flag}=help' on the site")


def _argument(flag: str, value: str) -> str:
    return f"--{flag}={value}" if value else f"--{flag}"


def _check_extra(name: str) -> None:
    typed = find(name) if name != "extra" else None
    if name in OWNED:
        raise Refused(f"extra: {name!r} isn't yours to set", hint=OWNED[name])
    if typed is not None or name in OTHER_WORDS:
        raise Refused(f"extra: {name!r} has a field of its own", hint=typed.name if typed else OTHER_WORDS[name])
    if not _NAME.fullmatch(name):
        raise Refused(f"extra: {name!r} is no name of an option of sbatch")
    meant = sorted(flag for flag in _FLAGS if flag.startswith(name) and flag != name)
    if meant and name not in _FLAGS:  # sbatch takes a long name's beginning for the name. Source: getopt_long(3)
        raise Refused(f"extra: {name!r} would be taken for {meant[0]!r}", hint="write names in full")


_CHOICES = {"kill_on_invalid_dep": ("no", "yes")}
"""How sbatch writes no and yes where that isn't 0 and 1."""


def _time(options: JobOptions) -> list[str]:
    if options.unlimited_time:
        return ["--time=UNLIMITED"]
    return [] if options.time_limit_minutes is None else [f"--time={options.time_limit_minutes}"]


def _mem(options: JobOptions) -> list[str]:
    if options.all_memory:
        return ["--mem=0"]
    return [] if options.mem_per_node_mib is None else [f"--mem={options.mem_per_node_mib}M"]


def _nodes(options: JobOptions) -> list[str]:
    if options.node_counts is not None:
        return [f"--nodes={options.node_counts}"]
    if options.nodes_max is not None:
        return [f"--nodes={options.nodes or 1}-{options.nodes_max}"]
    return [] if options.nodes is None else [f"--nodes={options.nodes}"]


def _exclusive(options: JobOptions) -> list[str]:
    if options.exclusive_scope is not None:
        return [f"--exclusive={options.exclusive_scope}"]
    return ["--exclusive"] if options.exclusive else []


def _requeue(options: JobOptions) -> list[str]:
    if options.requeue_expedite:
        return ["--requeue=expedite"]
    return ["--requeue" if options.requeue else "--no-requeue"]


def _gpus_and_gres(options: JobOptions) -> list[str]:
    """Ask for GPUs in the way of ``--gres`` when there are other resources: sbatch wants one of the two."""
    if options.gpus_per_node is None:
        return [] if options.gres is None else [f"--gres={options.gres}"]
    if options.gres is None:
        return [f"--gpus-per-node={options.gpus_per_node}"]
    gpus = ",".join(f"gpu:{item}" for item in options.gpus_per_node.split(","))
    return [f"--gres={gpus},{options.gres}"]


_TOGETHER: dict[str, Callable[[JobOptions], list[str]]] = {
    "time_limit": _time,
    "mem": _mem,
    "nodes": _nodes,
    "exclusive": _exclusive,
    "requeue": _requeue,
    "gpus_per_node": _gpus_and_gres,
}
"""Arguments that several fields make."""
_SAID = frozenset({"time", "mem", "nodes", "exclusive", "requeue", "gpus-per-node", "gres", "comment"})
"""Flags that are said there, and the comment, which is the job's own affair."""
