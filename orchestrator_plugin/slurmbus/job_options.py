"""Options of a job as people write them, turned into what a request carries. Source: sbatch(1)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from slurmbus.units import check_moment, parse_memory_mib, parse_time_minutes
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import JobOptions
from slurmbus_protocol.options import (
    BY_NAME,
    CONFLICTS,
    FORMER,
    GROUPS,
    LISTED,
    LISTS,
    OF_GPUS,
    OPTIONS,
    OTHER_WORDS,
    OWNED,
    Kind,
    Option,
    find,
    long_name,
)

Chosen = dict[str, Any]
"""Fields of JobOptions and their values: those that somebody set."""

EXTRA = "extra"
_EXTRA_NAME = re.compile(r"[a-z][a-z0-9-]*")
_GPUS = re.compile(r"(?:[\w.-]+:)?\d+")
_NO_GPUS = re.compile(r"(?:gres[/:])?gpu(?:[:=][\w.-]+)?[:=]0+")
_GPU_FIELDS = next(group for group in GROUPS if "gpus" in group)
_NODES = re.compile(r"(\d+)(?:-(\d+))?")
_SIGNAL = re.compile(r"(?:(?P<flags>[RB]+):)?(?P<signal>\w+)(?:@\d{1,5})?", re.IGNORECASE)
_FORWARDED = {"HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "1", "2", "3", "10", "12", "15"}
_UNLIMITED = {"unlimited", "infinite", "-1", "0"}
_SCOPES = {"user", "mcs", "topo"}
_YES = {
    "yes": True,
    "true": True,
    "1": True,
    "on": True,
    "": True,
    "no": False,
    "false": False,
    "0": False,
    "off": False,
}
_INTEGER = re.compile(r"[+-]?\d+")


def read(given: Mapping[str, Any], where: str = "options") -> Chosen:
    """Read options by our names or sbatch's, in sbatch's way of writing; None leaves one alone.

    Args:
        given: what somebody wrote.
        where: where they wrote it, for the errors.

    Raises:
        InvalidSetting: a key is unknown or isn't the user's to say, or a value can't be used.
    """
    return _read(given, where, _OTHER)


def _read(given: Mapping[str, Any], where: str, others: Mapping[str, Callable[[Any, str], Chosen]]) -> Chosen:
    chosen: Chosen = {}
    written: dict[str, str] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key == EXTRA:
            chosen[EXTRA] = read_extra(value, where)
            continue
        fields = _read_key(str(key), value, where, others)
        for field, meant in fields.items():
            if field in chosen and chosen[field] != meant:
                raise InvalidSetting(f"{where}: {written[field]!r} and {key!r} say different things", hint="keep one")
            chosen[field] = meant
            written[field] = str(key)
    _check_conflicts(chosen, where)
    return chosen


def read_loosely(given: Mapping[str, Any], where: str) -> Chosen:
    """Read options like :func:`read`, and take what isn't known as another option of sbatch (``extra``).

    Former names are understood, too: calls that were written for the SSH-based integration stay as they are.
    """
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in given.items():
        is_known = key == EXTRA or _is_known(str(key)) or meant_by(str(key)) is not None
        (known if is_known else extra)[key] = value
    chosen = _read(known, where, {**_OTHER, **_FORMER})
    if extra:
        chosen[EXTRA] = {**chosen.get(EXTRA, {}), **read_extra(extra, where)}
    return chosen


def read_words(words: Iterable[str], where: str) -> Chosen:
    """Read ``name=value`` and ``name``, as on a command line; what isn't known is an error."""
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        given[name] = value if equals else True
    return read(given, where)


def merge(*layers: Chosen) -> JobOptions:
    """Put layers over each other; what a later one says replaces every way of saying it in the earlier ones."""
    merged: Chosen = {}
    for layer in layers:
        for group in GROUPS:
            if group & layer.keys() or _listed(layer, group):
                merged = _without(merged, group)
        if _has_no_gpus(layer):
            merged = {field: value for field, value in merged.items() if field not in OF_GPUS}
        extra = {**merged.get(EXTRA, {}), **layer.get(EXTRA, {})}
        merged.update(layer)
        if extra:
            merged[EXTRA] = extra
    try:
        return msgspec.convert(merged, JobOptions)
    except msgspec.ValidationError as error:
        raise InvalidSetting(f"options can't be used: {error}") from error


def _items(listed: str | None) -> list[str]:
    return listed.split(",") if listed else []


def _listed(layer: Chosen, group: frozenset[str]) -> bool:
    """Tell whether a list of a layer has an item that says what a group says."""
    patterns = [pattern for field, pattern in LISTED if field in group]
    items = [item for name in LISTS for item in _items(layer.get(name))]
    return any(pattern.fullmatch(item) for pattern in patterns for item in items)


def _without(merged: Chosen, group: frozenset[str]) -> Chosen:
    """Leave out what says what a group says: its fields, and the items of lists that say the same."""
    left = {field: value for field, value in merged.items() if field not in group}
    for pattern in (pattern for field, pattern in LISTED if field in group):
        for name in left.keys() & set(LISTS):
            left[name] = ",".join(item for item in _items(left[name]) if not pattern.fullmatch(item)) or None
    return left


def _has_no_gpus(layer: Chosen) -> bool:
    """Tell whether a layer says that the job gets no GPUs."""
    said = [layer[field] for field in _GPU_FIELDS & layer.keys()]
    return bool(said) and not any(said) and not _listed(layer, _GPU_FIELDS)


def chosen_of(options: JobOptions) -> Chosen:
    """Give what is set in a request's options."""
    unset = JobOptions()
    fields = msgspec.structs.asdict(options)
    return {field: value for field, value in fields.items() if value != getattr(unset, field)}


def nearest(key: str) -> str | None:
    """Give the option whose name looks most like this one."""
    known = {name.replace("_", "-"): name for name in (*(option.flag for option in OPTIONS), *BY_NAME)}
    close = difflib.get_close_matches(long_name(key), known, n=1, cutoff=0.7)
    return known[close[0]].replace("-", "_") if close else None


def meant_by(key: str) -> str | None:
    """Say which option somebody means by a name that there isn't; None when none is like it."""
    former = FORMER.get(long_name(key))
    if former is not None:
        return f"its name here is {former}"
    if long_name(key) in OWNED:
        return OWNED[long_name(key)]
    close = nearest(key)
    return f"did you mean {close!r}?" if close else None


def read_extra(value: Any, where: str) -> dict[str, str]:
    """Read the options that have no field of their own: sbatch's long names and their values, "" for none."""
    if not isinstance(value, Mapping):
        raise InvalidSetting(f"{where}: extra is {value!r}", hint="write a mapping of sbatch's long names to values")
    extra: dict[str, str] = {}
    for key, meant in value.items():
        name = long_name(str(key))
        typed = find(str(key)) if name != EXTRA else BY_NAME["node_extra"]
        if typed is not None or name in OTHER_WORDS:
            word = typed.name if typed else OTHER_WORDS[name]
            raise InvalidSetting(f"{where}: extra[{key!r}] has a name of its own", hint=f"write {word} instead")
        if name in FORMER:
            raise InvalidSetting(
                f"{where}: extra[{key!r}] is no option of sbatch", hint=f"its name here is {FORMER[name]}"
            )
        _refuse_owned(name, where)
        if not _EXTRA_NAME.fullmatch(name):
            raise InvalidSetting(f"{where}: extra has {key!r}, which is no name of an option of sbatch")
        if meant is None or meant is False:
            continue
        extra[name] = "" if meant is True else _text(meant, f"{where}: extra[{key!r}]")
    return extra


def _is_known(key: str) -> bool:
    name = long_name(key)
    return find(key) is not None or name in OWNED or name in OTHER_WORDS


def _read_key(key: str, value: Any, where: str, others: Mapping[str, Callable[[Any, str], Chosen]]) -> Chosen:
    name = long_name(key)
    option = find(key)
    if option is not None:
        return read_one(option, value, where)
    _refuse_owned(name, where)
    if name in others:
        return others[name](value, f"{where}: {key}")
    hint = meant_by(key) or f"known: {', '.join(BY_NAME)}"
    raise InvalidSetting(
        f"{where} has the unknown key {key!r}", hint=f"{hint}; another option of sbatch goes into extra={{name: value}}"
    )


def _refuse_owned(name: str, where: str) -> None:
    if name in OWNED:
        raise InvalidSetting(f"{where}: {name!r} isn't yours to set", hint=OWNED[name])


def read_one(option: Option, value: Any, where: str = "options") -> Chosen:
    """Read one option's value."""
    label = f"{where}: {option.name}"
    if value is True and option.bare:
        value = option.bare
    special = _SPECIAL.get(option.name)
    if special is not None:
        return special(value, label)
    return {option.wire: _READERS[option.kind](value, label)}


# -------------------------------------------------------------- kinds of values


def _text(value: Any, label: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidSetting(
            f"{label}={value!r} is {type(value).__name__}", hint="write it as sbatch's option takes it"
        )
    text = str(value).strip()
    if not text or "\0" in text:
        raise InvalidSetting(f"{label}={value!r} is empty" if not text else f"{label} has a NUL character")
    return text


def _list(value: Any, label: str) -> str:
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return ",".join(_text(item, label) for item in items)
    return _text(value, label)


def _gpus(value: Any, label: str) -> str | None:
    """Read a number of GPUs; None are none."""
    text = _list(value, label)
    items = text.split(",")
    if not all(_GPUS.fullmatch(item) for item in items):
        raise InvalidSetting(f"{label}={text!r} is no number of GPUs", hint="e.g. 2, a100:2 or a100:2,v100:1")
    return ",".join(item for item in items if int(item.rpartition(":")[2])) or None


def _integer(value: Any, label: str) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSetting(f"{label}={value!r} is no whole number")
    return value


def _at_least(least: int) -> Callable[[Any, str], int]:
    def reader(value: Any, label: str) -> int:
        number = _integer(value, label)
        if number < least:
            raise InvalidSetting(f"{label}={number} is less than {least}")
        return number

    return reader


def _flag(value: Any, label: str) -> bool:
    if isinstance(value, bool):
        return value
    meant = _YES.get(str(value).strip().lower()) if isinstance(value, str | int) else None
    if meant is None:
        raise InvalidSetting(f"{label}={value!r} is neither yes nor no", hint="write true or false")
    return meant


def _moment(value: Any, label: str) -> str:
    if isinstance(value, datetime):  # a naive one is meant by the clock here
        return f"uts{int(value.timestamp())}"
    return check_moment(_text(value, label), label)


_READERS: dict[Kind, Callable[[Any, str], Any]] = {
    Kind.TEXT: _text,
    Kind.LIST: _list,
    Kind.GPUS: _gpus,
    Kind.COUNT: _at_least(1),
    Kind.NATURAL: _at_least(0),
    Kind.NUMBER: _integer,
    Kind.FLAG: _flag,
    Kind.CHOICE: _flag,
    Kind.MINUTES: parse_time_minutes,
    Kind.MEMORY: parse_memory_mib,
    Kind.MOMENT: _moment,
}


# -------------------------------------------------------------- options with a way of their own


def _time_limit(value: Any, label: str) -> Chosen:
    if not isinstance(value, bool) and str(value).strip().lower() in _UNLIMITED:
        return {"unlimited_time": True}
    return {"time_limit_minutes": parse_time_minutes(value, label)}


def _mem(value: Any, label: str) -> Chosen:
    if not isinstance(value, bool) and re.fullmatch(r"0+[KMGT]?B?", str(value).strip(), re.IGNORECASE):
        return {"all_memory": True}
    return {"mem_per_node_mib": parse_memory_mib(value, label)}


def _nodes(value: Any, label: str) -> Chosen:
    match = _NODES.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match is None or match[2] is None:
        if isinstance(value, str) and re.fullmatch(r"[\d,:-]+", value.strip()) and re.search(r"[,:]", value):
            return {"node_counts": value.strip()}
        return {"nodes": _at_least(1)(value, label)}
    least, most = _at_least(1)(match[1], label), _at_least(1)(match[2], label)
    if most < least:
        raise InvalidSetting(f"{label}={value!r}: {most} is less than {least}")
    return {"nodes": least, "nodes_max": most} if most > least else {"nodes": least}


def _exclusive(value: Any, label: str) -> Chosen:
    if isinstance(value, str) and value.strip().lower() in _SCOPES:
        return {"exclusive_scope": value.strip().lower()}
    return {"exclusive": _flag(value, label)}


def _exclusive_scope(value: Any, label: str) -> Chosen:
    scope = _text(value, label).lower()
    if scope not in _SCOPES:
        raise InvalidSetting(f"{label}={value!r} is none of {', '.join(sorted(_SCOPES))}")
    return {"exclusive_scope": scope}


def _requeue(value: Any, label: str) -> Chosen:
    if isinstance(value, str) and value.strip().lower() == "expedite":
        return {"requeue": True, "requeue_expedite": True}
    return {"requeue": _flag(value, label)}


def _requeue_expedite(value: Any, label: str) -> Chosen:
    return {"requeue": True, "requeue_expedite": True} if _flag(value, label) else {"requeue_expedite": False}


def _signal(value: Any, label: str) -> Chosen:
    text = _text(value, label)
    match = _SIGNAL.fullmatch(text)
    if match is None:
        raise InvalidSetting(f"{label}={text!r} can't be read", hint='write "B:USR1@120": who, which signal, how early')
    name = match["signal"].upper().removeprefix("SIG")
    if "B" in (match["flags"] or "").upper() and name not in _FORWARDED:
        raise InvalidSetting(
            f"{label}={text!r}: the payload doesn't get {match['signal']}",
            hint="use one of HUP, INT, QUIT, TERM, USR1 and USR2",
        )
    return {"signal": text}


def _priority(value: Any, label: str) -> Chosen:
    text = _text(value, label).upper()
    if text != "TOP" and not text.isdigit():
        raise InvalidSetting(f"{label}={value!r} is neither a number nor TOP")
    return {"priority": text}


def _dependency(value: Any, label: str) -> Chosen:
    text = _list(value, label)
    if "singleton" in text.lower():
        raise InvalidSetting(
            f"{label}={text!r}: singleton waits for jobs of the same name, and each job's name is its own here",
            hint="name the jobs to wait for, e.g. afterany:1234; or limit the asset's concurrency in Dagster",
        )
    return {"dependency": text}


def _node_names(field: str) -> Callable[[Any, str], Chosen]:
    def reader(value: Any, label: str) -> Chosen:
        text = _list(value, label)
        if "/" in text:
            raise InvalidSetting(
                f"{label}={text!r} looks like a file", hint="name nodes, or use nodefile to read it here"
            )
        return {field: text}

    return reader


def _with_gpus(field: str) -> Callable[[Any, str], Chosen]:
    """Read a list that may say how many GPUs there shall be; ``gpu:0`` is a job without any."""

    def reader(value: Any, label: str) -> Chosen:
        items = _list(value, label).split(",")
        left = [item for item in items if not _NO_GPUS.fullmatch(item)]
        return {field: ",".join(left) or None} | ({"gpus": None} if left != items else {})

    return reader


def _resv_ports(value: Any, label: str) -> Chosen:
    return {"resv_ports": "" if value is True or value == "" else str(_at_least(0)(value, label))}


_SPECIAL: dict[str, Callable[[Any, str], Chosen]] = {
    "time_limit": _time_limit,
    "mem": _mem,
    "nodes": _nodes,
    "exclusive": _exclusive,
    "exclusive_scope": _exclusive_scope,
    "requeue": _requeue,
    "requeue_expedite": _requeue_expedite,
    "signal": _signal,
    "priority": _priority,
    "dependency": _dependency,
    "nodelist": _node_names("nodelist"),
    "exclude": _node_names("exclude"),
    "resv_ports": _resv_ports,
    "gres": _with_gpus("gres"),
    "tres_per_task": _with_gpus("tres_per_task"),
    "propagate": lambda value, label: {"propagate": "ALL" if value is True or value == "" else _list(value, label)},
}


def _extra_node_info(value: Any, label: str) -> Chosen:
    names = ("sockets_per_node", "cores_per_socket", "threads_per_core")
    parts = _text(value, label).split(":")
    if len(parts) > len(names):
        raise InvalidSetting(f"{label}={value!r} has too many parts", hint="write sockets:cores:threads, * for any")
    pairs = zip(names, parts, strict=False)
    return {name: _at_least(1)(part, f"{label} ({name})") for name, part in pairs if part != "*"}


def _file(value: Any, label: str) -> str:
    try:
        return Path(str(value)).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"{label}={str(value)!r} can't be read here: {error}") from error


def _nodefile(value: Any, label: str) -> Chosen:
    names = [
        name for line in _file(value, label).splitlines() for name in line.partition("#")[0].replace(",", " ").split()
    ]
    return _node_names("nodelist")(names, label)


def _no_requeue(value: Any, label: str) -> Chosen:
    if not _flag(value, label):
        raise InvalidSetting(f"{label}={value!r} says nothing", hint="write requeue=True")
    return {"requeue": False}


_OTHER: dict[str, Callable[[Any, str], Chosen]] = {
    "extra-node-info": _extra_node_info,
    "nodefile": _nodefile,
    "bbf": lambda value, label: {"bb": _text(_file(value, label), label)},
    "no-requeue": _no_requeue,
    "tasks-per-node": lambda value, label: {"ntasks_per_node": _at_least(1)(value, label)},
    "ntasks-per-tres": lambda value, label: {"ntasks_per_gpu": _at_least(1)(value, label)},
}


def _former_signal(value: Any, label: str) -> Chosen:
    """Read ``TERM@120``, which the batch shell got there; an empty one is none. Source: dagster-slurm 1.22."""
    if isinstance(value, str) and not value.strip():
        return {}
    text = _text(value, label)
    return _signal(text if ":" in text else f"B:{text}", label)


_FORMER: dict[str, Callable[[Any, str], Chosen]] = {"num-nodes": _nodes, "signal-before-timeout": _former_signal}


def _check_conflicts(chosen: Chosen, where: str) -> None:
    asked = {option.name for option in OPTIONS if _is_asked(chosen.get(option.wire))}
    if chosen.get("all_memory"):
        asked.add("mem")
    for one, other in CONFLICTS:
        if {one, other} <= asked:
            raise InvalidSetting(f"{where}: {one} and {other} exclude each other", hint="set one of them")


def _is_asked(value: Any) -> bool:
    return value is not None and value is not False
