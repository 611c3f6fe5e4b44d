"""The payload: the user's process, in a session of its own."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from contextlib import suppress

from slurmbus_agent.runner import libc
from slurmbus_agent.runner.protocol import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

LEFTOVERS_GONE_WITHIN = 2.0
"""Seconds to wait for killed processes; one in uninterruptible sleep must not keep the job from ending."""
_INTERPRETERS = {"python": "python3"}
"""What to try when a command isn't there: many sites have no plain ``python``."""


class NotStarted(Exception):
    """The payload couldn't be started; ``exit_code`` is what a shell would have given."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Payload:
    """A running payload, made by :func:`start`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started_at = time.time()
        self._begun = time.monotonic()
        self._used_before = _children_cpu()

    def send(self, number: int) -> None:
        """Signal the payload's process group."""
        with suppress(ProcessLookupError, PermissionError):  # it has ended, or became somebody else
            os.killpg(self.pid, number)

    def ended(self) -> bool:
        """Tell whether the payload has ended, and bury orphans that were handed to us meanwhile."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return True
            if found is None:
                return False
            if found.si_pid == self.pid:
                return True
            os.waitpid(found.si_pid, os.WNOHANG)

    def bury(self) -> tuple[int, int, dict[str, Any]]:
        """Kill what the payload left behind, and give its exit code, its signal (or 0), and what all of it used."""
        elapsed = time.monotonic() - self._begun
        self.send(signal.SIGKILL)  # while the payload isn't waited for nobody else can have its number
        _, status = os.waitpid(self.pid, 0)
        kill_children()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        usage = {
            "cpu_seconds": max(0.0, _children_cpu() - self._used_before),
            "max_rss": used.ru_maxrss * 1024,
            "elapsed": elapsed,
        }
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return (0 if number else os.WEXITSTATUS(status)), number, usage


def _children_cpu() -> float:
    """CPU seconds of the processes that have been waited for; the login shell's are among them from the start."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(argv: list[str], env: dict[str, str], cwd: str, stdout: int, stderr: int) -> Payload:
    """Start the payload and come back when it runs; NotStarted says in plain words why it doesn't."""
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)  # orphans come to us instead of outliving the job
    parent = os.getpid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, (stdout, stderr), writer, parent)
    os.close(writer)
    with open(reader, "rb") as problem:
        words = problem.read().decode().split(" ", 1)
    if len(words) == 1:
        return Payload(pid)
    os.waitpid(pid, 0)
    raise _explain(words[0], int(words[1]), argv[0], cwd)


def _become(
    argv: list[str], env: dict[str, str], cwd: str, outputs: tuple[int, int], writer: int, parent: int
) -> NoReturn:
    """Turn this forked process into the payload, or write into the pipe what went wrong."""
    doing = "cwd"
    try:
        os.setsid()
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody else would report on it, or know its end
        if os.getppid() != parent:
            os._exit(EXIT_NOT_FOUND)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(outputs[0], 1)
        os.dup2(outputs[1], 2)
        os.chdir(cwd)
        doing = "command"
        try:
            os.execvpe(argv[0], argv, env)  # noqa: S606 - no shell is wanted
        except FileNotFoundError:
            if argv[0] not in _INTERPRETERS:
                raise
            os.execvpe(_INTERPRETERS[argv[0]], argv, env)  # noqa: S606
    except OSError as error:
        os.write(writer, b"%s %d" % (doing.encode(), error.errno or 0))
    except ValueError:  # a zero byte
        os.write(writer, b"%s %d" % (doing.encode(), errno.EINVAL))
    finally:
        os._exit(EXIT_NOT_FOUND)


def _explain(doing: str, number: int, command: str, cwd: str) -> NotStarted:
    if doing == "cwd":
        return NotStarted(f"the working directory {cwd} can't be entered: {os.strerror(number)}", EXIT_NOT_EXECUTABLE)
    if number == errno.ENOENT:
        return NotStarted(_missing(command, cwd), EXIT_NOT_FOUND)
    if number == errno.EACCES:
        return NotStarted(
            f"{command!r} isn't executable; run it with its interpreter, or 'chmod +x' it", EXIT_NOT_EXECUTABLE
        )
    if number == errno.ENOEXEC:
        reason = "it is no program; its first line must name its interpreter, like #!/bin/bash"
    elif number == errno.E2BIG:
        reason = "its arguments and environment are longer than the system allows"
    elif number == errno.EINVAL:
        reason = "its arguments or environment can't be passed on; is there a zero byte or a '=' in a name?"
    else:
        reason = os.strerror(number)
    return NotStarted(f"{command!r} can't be executed: {reason}", EXIT_NOT_EXECUTABLE)


def _missing(command: str, cwd: str) -> str:
    path = os.path.join(cwd, command)
    if "/" not in command:
        lies_there = f"; to run the file in the working directory write './{command}'" if os.path.exists(path) else ""
        return f"the command {command!r} isn't on this site's PATH{lies_there}"
    if os.path.exists(path):
        return f"the interpreter that the first line of {command!r} names isn't on this site"
    return f"the command {command!r} isn't there"


def kill_children() -> None:
    """Kill every process below this one; orphans come up to us one generation at a time."""
    give_up = time.monotonic() + LEFTOVERS_GONE_WITHIN
    while time.monotonic() < give_up:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        for pid in _children():
            with suppress(PermissionError):  # somebody else's by now
                os.kill(pid, signal.SIGKILL)  # ours until we wait for it
        time.sleep(0.002)


def _children() -> list[int]:
    try:
        with open("/proc/thread-self/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return []
