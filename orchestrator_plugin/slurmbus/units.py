"""Times and memory sizes, written as Slurm writes them."""

from __future__ import annotations

import re

from slurmbus_protocol.errors import InvalidSetting

_TIME_HINT = "write it as Slurm does: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"
_MEMORY_HINT = "write it as Slurm does: 500M, 1G, 1.5G, 2T, or a number of MiB"
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
_MOMENT_HINT = "write it as Slurm does: now+1hour, 16:00, tomorrow, 2030-01-20 or 2030-01-20T12:34:00"
_MOMENT = re.compile(
    r"""(?: now (?: [+] \d+ \s* (?: seconds? | minutes? | hours? | days? | weeks? )? )?
        | today | tomorrow | midnight | elevenses | noon | fika | teatime
        | uts \d+
        | \d{4}-\d{1,2}-\d{1,2} (?: T \d{1,2}:\d{2} (?: :\d{2} )? )?
        | \d{1,2} [/.] \d{1,2} (?: [/.] \d{2} (?: \d{2} )? )?
        | \d{1,2}:\d{2} (?: :\d{2} )? (?: \s* [AP]M )?
        | \d{6} | \d{4}
        )""",
    re.IGNORECASE | re.VERBOSE,
)
_MEMORY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT])?(?:i?B)?", re.IGNORECASE)
_KIB = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}


def parse_time_minutes(value: str | int, field: str = "time_limit") -> int:
    """Give a time limit in whole minutes, rounded up as Slurm does. Source: sbatch(1), ``--time``.

    Args:
        value: minutes as a number, or ``MM``, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM``, ``D-HH:MM:SS``.
        field: the setting's name, for the error.

    Raises:
        InvalidSetting: it can't be read, or isn't at least a second.
    """
    text = str(value).strip()
    match = None if isinstance(value, bool) else _CLOCK.fullmatch(text)
    if match is None:
        raise InvalidSetting(f"{field}={value!r} is no time", hint=_TIME_HINT)
    fields = [int(part) for part in match["fields"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*fields, 0, 0)[:3]
        hours += 24 * int(match["days"])
    elif len(fields) == 3:  # noqa: PLR2004 - hours, minutes and seconds
        hours, minutes, seconds = fields
    else:
        hours, minutes, seconds = 0, *(*fields, 0)[:2]
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise InvalidSetting(f"{field}={value!r} is no time at all", hint=_TIME_HINT)
    return -(-total // 60)


def parse_memory_mib(value: str | int, field: str = "mem") -> int:
    """Give a memory size in whole MiB, rounded up. Source: sbatch(1), ``--mem``.

    Args:
        value: MiB as a number, or a number with a suffix K, M, G or T (powers of 1024).
        field: the setting's name, for the error.

    Raises:
        InvalidSetting: it can't be read, or is nothing. (Slurm's ``--mem=0``, all of a node, isn't offered.)
    """
    match = None if isinstance(value, bool) else _MEMORY.fullmatch(str(value).strip())
    if match is None:
        raise InvalidSetting(f"{field}={value!r} is no memory size", hint=_MEMORY_HINT)
    whole, _, fraction = match["number"].partition(".")
    kib = _KIB[(match["unit"] or "M").upper()]
    scale = 10 ** len(fraction)
    mib: int = -(-int(whole + fraction) * kib // (1024 * scale))
    if mib <= 0:
        raise InvalidSetting(f"{field}={value!r} is no memory at all", hint=_MEMORY_HINT)
    return mib


def check_moment(value: str, field: str = "begin") -> str:
    """Give back a date or a time of day that Slurm can read, by the site's clock. Source: sbatch(1), ``--begin``.

    Args:
        value: one or several of ``now+COUNT UNIT``, a word such as ``tomorrow``, a date, and a time of day.
        field: the setting's name, for the error.

    Raises:
        InvalidSetting: it is none of these.
    """
    rest = value.strip()
    while rest:
        match = _MOMENT.match(rest)
        if match is None:
            raise InvalidSetting(f"{field}={value!r} is no date or time", hint=_MOMENT_HINT)
        rest = rest[match.end() :].lstrip(" -")
    return value.strip()
