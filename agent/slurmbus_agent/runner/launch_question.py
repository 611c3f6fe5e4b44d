"""What a launch asks short programs: what srun offers, which MPI this is, whether a Python has a module."""

from __future__ import annotations

import os
import time

from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.payload import NotStarted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slurmbus_agent.runner.launch_job import Launch

ANSWER_WITHIN = 30.0
"""Seconds; a Python on a busy file system may take some."""
_WHERE = (
    "import importlib.util, sys; found = importlib.util.find_spec(sys.argv[1]); print(found.origin if found else '')"
)


def answer(job: Launch, argv: list[str]) -> tuple[int, list[str]]:
    """Run a program, and give its exit code (or minus its signal) and the lines that it wrote.

    Raises:
        NotStarted: it isn't there, or can't be executed.
        LaunchFailed: it doesn't end.
    """
    lines: list[str] = []
    ends: list[int] = []
    job.spawn(argv, os.environ, lines.append, ends.append)
    if not job.wait(lambda: bool(ends), time.monotonic() + ANSWER_WITHIN):
        raise LaunchFailed(f"{' '.join(argv)!r} doesn't end within {ANSWER_WITHIN:g} s")
    return ends[0], lines


def module_of(job: Launch, python: str, module: str, hint: str) -> str:
    """Give the file of a module that a Python has.

    Raises:
        LaunchFailed: the Python isn't there, or doesn't have it; ``hint`` says what to do.
    """
    try:
        code, lines = answer(job, [python, "-c", _WHERE, module])
    except NotStarted as error:
        raise LaunchFailed(f"python: {error}", error.exit_code) from error
    if code:
        raise LaunchFailed(f"python: {python!r} can't be used: {' / '.join(lines[-3:])}")
    found = lines[-1] if lines else ""
    if not found:
        raise LaunchFailed(f"python: {python!r} on {job.allocation.here.name} has no {module}; {hint}")
    return found
