"""The child process in which a scheduler's blocking calls run: ``python -m slurmbus_agent.scheduler.child native``.

libslurm blocks for minutes, holds the interpreter's lock meanwhile, prints to standard error and may end the process:
so it lives here, where the agent can kill it. The child ends when its standard input does, and with its parent; jobs
don't notice either.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from slurmbus_agent.scheduler.base import SchedulerError, Unavailable
from slurmbus_agent.scheduler.calls import (
    HEADER,
    KINDS,
    STARTED,
    Answer,
    Backend,
    Call,
    HungUp,
    failure,
    pack,
    raw,
)

_PR_SET_PDEATHSIG = 1  # prctl(2)


def serve(backend: Callable[[], Backend]) -> int:
    """Answer the calls that come on standard input until it ends; give the exit code."""
    calls = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints may not get between the answers.
    os.dup2(2, 1)
    try:
        carried_out_by = backend()
    except SchedulerError as error:
        _write(answers, failure(STARTED, error))
        return 1
    _write(answers, Answer(STARTED, "ok", raw(carried_out_by.version)))
    try:
        while (call := _read(calls)) is not None:
            _write(answers, _carry_out(carried_out_by, call))
    except HungUp:
        return 1
    return 0


def _carry_out(backend: Backend, call: Call) -> Answer:
    arguments = msgspec.msgpack.decode(call.arguments, type=KINDS[call.kind].arguments)
    method = getattr(backend, call.kind)
    if call.not_after is not None and time.clock_gettime(time.CLOCK_BOOTTIME) >= call.not_after:
        return failure(call.id, Unavailable("the agent's lease is over; Slurm wasn't asked"))
    try:
        result = method(*arguments)
    except SchedulerError as error:
        return failure(call.id, error)
    return Answer(call.id, "ok", raw(result))


def _read(calls: BinaryIO) -> Call | None:
    header = calls.read(HEADER)
    size = int.from_bytes(header, "big")
    body = calls.read(size) if len(header) == HEADER else b""
    return msgspec.msgpack.decode(body, type=Call) if body and len(body) == size else None


def _write(answers: BinaryIO, answer: Answer) -> None:
    answers.write(pack(answer))
    answers.flush()


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, also in the middle of a call."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _native(conf: str | None) -> Backend:
    try:
        from slurmbus_agent.scheduler.native import NativeBackend  # noqa: PLC0415 - pyslurm is loaded only where it is used
    except ImportError as error:
        raise Unavailable(
            f"pyslurm can't be loaded: {error}",
            hint="install it where the agent is: pip install 'slurmbus-agent[pyslurm]'",
        ) from error
    return NativeBackend(conf)


def _commands(conf: str | None) -> Backend:
    from slurmbus_agent.scheduler.commands import CommandsBackend  # noqa: PLC0415 - nothing that pyslurm needs

    return CommandsBackend(conf, owner=0)


BACKENDS: dict[str, Callable[[str | None], Backend]] = {"native": _native, "commands": _commands}


def main() -> int:
    """Serve the scheduler that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m slurmbus_agent.scheduler.child")
    parser.add_argument("scheduler", choices=sorted(BACKENDS))
    parser.add_argument("--conf", help="slurm.conf, where Slurm doesn't find it by itself")
    arguments = parser.parse_args()
    die_with_parent()
    return serve(lambda: BACKENDS[arguments.scheduler](arguments.conf))


if __name__ == "__main__":
    sys.exit(main())
