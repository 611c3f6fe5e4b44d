"""How the tasks of a job array are called, and how Slurm writes several indexes.

A task is told apart from its siblings by its name: ``train.01JD…[3]`` is task 3 of the array that Slurm knows as
``train.01JD…``. With the array's id that names one job, as id and name do for a single one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from slurmbus_protocol.arrays import compact as expression

__all__ = ["ARRAY_TASK", "expanded", "expression", "split_name", "task_name"]

ARRAY_TASK = "{array-task}"
"""Stands for a task's index in BatchJob.output."""
_NAMED = re.compile(r"(?P<name>.*)\[(?P<indexes>[0-9,:-]+)\]", re.DOTALL)
_PART = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_THROTTLE = re.compile(r"%\d+$")


def task_name(name: str, indexes: int | Iterable[int]) -> str:
    """Give the name of one task, or of several at once."""
    return f"{name}[{expression([indexes] if isinstance(indexes, int) else indexes)}]"


def split_name(name: str) -> tuple[str, tuple[int, ...] | None]:
    """Give the name that Slurm knows and the indexes of the tasks that are meant; None for a single job."""
    found = _NAMED.fullmatch(name)
    return (found["name"], expanded(found["indexes"])) if found else (name, None)


def expanded(text: str) -> tuple[int, ...]:
    """Read what Slurm writes for the tasks that share a record: ``3-9%2``, ``[1,4-6]``, ``0-8:4``, ``0x1F``.

    Raises:
        ValueError: it is something else, or was cut short (``1,3,5,...``: set SLURM_BITSTR_LEN=0 to have all of it).
    """
    if text.startswith("0x"):  # slurmdbd's own words: bit n is index n
        mask = int(text.partition("%")[0], 16)
        return tuple(index for index in range(mask.bit_length()) if mask >> index & 1)
    found: set[int] = set()
    for part in _THROTTLE.sub("", text.strip().strip("[]")).strip("[]").split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{text[:80]!r} isn't a list of an array's tasks")
        first, last, step = (int(group) if group else None for group in match.groups())
        found.update(range(first or 0, (last if last is not None else first or 0) + 1, step or 1))
    return tuple(sorted(found))
