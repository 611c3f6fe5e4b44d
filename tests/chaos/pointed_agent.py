"""Starts an agent that stops itself (SIGSTOP) at a labelled point, once, when that point is armed.

Installed on the login nodes beside `points.py`; takes the agent's own arguments. The scheduler's process is started
through this file as well, so that its points can be reached.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from points import (  # type: ignore[import-not-found]  # it lies beside this file on the login node
    ARMED,
    POINTS,
    REACHED,
    Point,
    of_child,
)

CHILD = "slurmbus_agent.scheduler.child"


def arrive(point: Point, arguments: tuple[Any, ...]) -> None:
    """Stop here if this point is armed. Whoever renames the file first is the one who was meant."""
    try:
        if Path(ARMED).read_text() != point.label or not point.fits(arguments):
            return
        taken = Path(f"{ARMED}.{platform.node()}.{os.getpid()}")
        Path(ARMED).rename(taken)
    except FileNotFoundError:
        return
    who = {
        "label": point.label,
        "host": platform.node(),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "child": point.child,
    }
    taken.write_text(json.dumps(who))
    taken.rename(REACHED)
    os.kill(os.getpid(), signal.SIGSTOP)


def wrapped(function: Callable[..., Any], points: Sequence[Point]) -> Callable[..., Any]:
    """Give the function with stops before and after it."""
    before = [point for point in points if point.when == "before"]
    after = [point for point in points if point.when == "after"]

    def arrive_at(those: Sequence[Point], arguments: tuple[Any, ...]) -> None:
        for point in those:
            arrive(point, arguments)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaiting(*arguments: Any, **named: Any) -> Any:
            arrive_at(before, arguments)
            result = await function(*arguments, **named)
            arrive_at(after, arguments)
            return result

        return awaiting

    @functools.wraps(function)
    def calling(*arguments: Any, **named: Any) -> Any:
        arrive_at(before, arguments)
        result = function(*arguments, **named)
        arrive_at(after, arguments)
        return result

    return calling


def arm(points: Sequence[Point]) -> None:
    """Wrap every function that one of these points names."""
    for module, name in dict.fromkeys((point.module, point.name) for point in points):
        owner: Any = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        of_function = [point for point in points if (point.module, point.name) == (module, name)]
        setattr(owner, last, wrapped(getattr(owner, last), of_function))


def start_children_through_this_file() -> None:
    """Have the scheduler's process come up with its own points."""
    from slurmbus_agent.scheduler.channel import Channel

    here = str(Path(__file__).resolve())
    start = Channel.start.__func__  # type: ignore[attr-defined]

    async def start_pointed(cls: type[Channel], argv: Sequence[str], *others: Any) -> Any:
        words = list(argv)
        place = words.index(CHILD)
        words[place - 1 : place + 1] = [here, CHILD]
        return await start(cls, words, *others)

    Channel.start = classmethod(start_pointed)  # type: ignore[method-assign, assignment]


def main(arguments: list[str]) -> int:
    """Be the agent, or its scheduler's process when the first argument names that."""
    if arguments[:1] == [CHILD]:
        arm(of_child(arguments[1]))
        sys.argv[1:] = arguments[1:]
        return int(importlib.import_module(CHILD).main())
    arm([point for point in POINTS if not point.child])
    start_children_through_this_file()
    return int(importlib.import_module("slurmbus_agent.cli").main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
