"""Running one of Slurm's commands: with a deadline, a bound on its output, and nothing left behind.

A command may be a site's own wrapper around Slurm's: it is killed with everything that it has started.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from slurmbus_agent.scheduler.base import Unavailable
from slurmbus_agent.scheduler.calls import HungUp

MAX_OUTPUT = 32 * 1024 * 1024
"""Bytes; 100,000 jobs of one user are about 15 MB."""
LOOK_AGAIN = 0.2
"""Seconds between two looks whether a command has ended and left its output open to something that it started."""
_READ = 1 << 16
_MAX_WORDS = 1000
_PR_SET_PDEATHSIG = 1  # prctl(2)
_OWN_VARIABLES = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_")
"""How variables begin that change what the commands do; an agent inside an allocation has many of them."""
_READABLE = {
    "LC_ALL": "C",  # error words in English
    "TZ": "UTC0",
    "SLURM_TIME_FORMAT": "%s",  # times as seconds since 1970
    "SLURM_BITSTR_LEN": "0",  # lists of an array's tasks in full length
}

_libc = ctypes.CDLL(None, use_errno=True)


class Ended(NamedTuple):
    """What a command left."""

    name: str
    code: int | None
    """Its exit code; None when it didn't end by itself."""
    stdout: str
    stderr: str
    seconds: float
    trouble: str = ""
    """Why it didn't end by itself: its deadline, a signal, too much output."""

    @property
    def said(self) -> str:
        """What it says about a failure, fit for a message."""
        lines = (_plain(line) for line in (self.stderr or self.stdout)[-_MAX_WORDS:].splitlines())
        told = "; ".join(dict.fromkeys(line for line in lines if line))
        if self.trouble:
            return f"{self.name} {self.trouble}" + (f": {told}" if told else "")
        return told or f"{self.name} ended with exit code {self.code} and said nothing"


def environment(conf: str | None) -> dict[str, str]:
    """Give the environment of Slurm's commands: this process's, without what changes their behaviour."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)}
    found = conf or os.environ.get("SLURM_CONF")
    return kept | _READABLE | ({"SLURM_CONF": found} if found else {})


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    patience: float,
    cwd: str = "/",
    stdin: bytes = b"",
    stop_at: tuple[bytes, ...] = (),
    owner: int | None = None,
) -> Ended:
    """Run a command to its end or to its deadline.

    Args:
        argv: its path and arguments.
        env: all of its environment.
        patience: seconds after which it is killed.
        cwd: the folder that it is started in.
        stdin: what it reads.
        stop_at: words on its standard error at any of which it is killed at once.
        owner: a pipe whose other end whoever waits for the answer holds open.

    Raises:
        Unavailable: it can't be started.
        HungUp: the owner has gone; the command was killed.
    """
    begun = time.monotonic()
    name = PurePath(argv[0]).name
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            process_group=0,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
        )
    except OSError as error:
        raise Unavailable(f"{name} can't be started: {error.strerror}: {argv[0]}") from error
    talk = _Talk(process, stdin, stop_at, owner)
    try:
        trouble = talk.until(begun + patience)
    finally:
        if process.poll() is None:
            _kill(process)
        talk.close()
    if trouble == _LATE:
        trouble = f"gave no answer within {patience:g} s"
    elif not trouble and process.returncode < 0:
        trouble = f"was killed by {signal.Signals(-process.returncode).name}"
    return Ended(
        name,
        None if trouble else process.returncode,
        talk.stdout.decode(errors="replace"),
        talk.stderr.decode(errors="replace"),
        time.monotonic() - begun,
        trouble,
    )


_LATE = "late"


class _Talk:
    """The pipes of a running command."""

    def __init__(
        self, process: subprocess.Popen[bytes], stdin: bytes, stop_at: tuple[bytes, ...], owner: int | None
    ) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._process = process
        self._stop_at = stop_at
        self._owner = owner
        self._to_write = memoryview(stdin)
        self._stdin = process.stdin
        self._outputs: dict[int, bytearray] = {}
        self._poll = select.poll()
        for pipe, into in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            if pipe is not None:
                self._outputs[pipe.fileno()] = into
                self._poll.register(pipe, select.POLLIN)
        if self._stdin is not None:
            os.set_blocking(self._stdin.fileno(), False)
            self._poll.register(self._stdin, select.POLLOUT)
        if owner is not None:
            self._poll.register(owner, 0)  # only its hanging up

    def until(self, deadline: float) -> str:
        """Talk until the command has ended; give why it was given up."""
        while self._outputs or self._process.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return _LATE
            had_ended = self._process.poll() is not None
            quiet = not self._turn(min(left, LOOK_AGAIN))
            if any(words in self.stderr[-2 * _READ :] for words in self._stop_at):
                return "was stopped"
            if len(self.stdout) + len(self.stderr) > MAX_OUTPUT:
                return f"wrote more than {MAX_OUTPUT >> 20} MiB"
            if quiet and had_ended:
                break  # something that it started holds its output open
        return ""

    def _turn(self, patience: float) -> bool:
        """Read and write what can be; tell whether anything came."""
        if not self._outputs:
            return _has_ended(self._process, patience)
        came = False
        for fd, _ in self._poll.poll(patience * 1000):
            if fd == self._owner:
                raise HungUp
            if fd in self._outputs:
                came = True
                self._read(fd)
            else:
                self._write(fd)
        return came

    def _read(self, fd: int) -> None:
        data = os.read(fd, _READ)
        self._outputs[fd].extend(data)
        if not data:
            del self._outputs[fd]
            self._poll.unregister(fd)

    def _write(self, fd: int) -> None:
        try:
            self._to_write = self._to_write[os.write(fd, self._to_write) :]
        except BrokenPipeError:  # it has read enough; what it says tells why
            self._to_write = self._to_write[:0]
        if not self._to_write and self._stdin is not None:
            self._poll.unregister(fd)
            self._stdin.close()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


def _has_ended(process: subprocess.Popen[bytes], patience: float) -> bool:
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and what it started. It isn't waited for by anybody else, so its number is still its own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _plain(line: str) -> str:
    """Leave out the command's own name and what no terminal should be sent."""
    printable = "".join(char if char.isprintable() else " " for char in line).strip()
    head, _, rest = printable.partition(": ")
    if rest and head.isidentifier():
        printable = rest
    return printable.removeprefix("error: ")
