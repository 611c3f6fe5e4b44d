"""What remains of the first agent after it has handed over: a process that waits for the agents after it.

It keeps the number by which the agent is known, passes signals on, starts a fresh agent when the present one asks, and
ends as the last one does. It uses the standard library's smallest part, 7 MiB, and no CPU time: all that it does is
to wait for a signal.
"""

from __future__ import annotations

import os
import signal
import sys

HERITAGE = "SLURMBUS_HERITAGE"
"""Handed to each agent: how many there were before, its parent, and whom to tell that it stands by."""
START = signal.SIGUSR2
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
WAITED_FOR = frozenset({*PASSED_ON, START, signal.SIGCHLD})


def become(agent: int, handovers: int, command: list[str]) -> None:
    """Turn this process into the waiter for ``agent``, its child.

    Signals are blocked until the waiter asks for them: none is lost, and none hits a process that isn't ready.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, str(agent), str(handovers), *command])  # noqa: S606


def main(agent: int, handovers: int, command: list[str]) -> int:
    """Wait until there is no agent any more; give the exit code of the last one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    agents = [agent]
    while True:
        code = reap(agents)
        if not agents:
            return code
        number = signal.sigwait(WAITED_FOR)
        if number == START:
            handovers += 1
            agents.append(_start(handovers, agents[-1], command))
        elif number == signal.SIGUSR1:
            os.kill(agents[-1], number)
        elif number in PASSED_ON:
            for pid in agents:
                os.kill(pid, number)


def reap(agents: list[int]) -> int:
    """Take note of children that have ended; give the exit code of the last agent among them."""
    code = 0
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            agents.clear()
            return code
        if pid == 0:
            return code
        if pid in agents:
            agents.remove(pid)
            ended = os.waitstatus_to_exitcode(status)
            code = 128 - ended if ended < 0 else ended


def _start(handovers: int, predecessor: int, command: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        # The agent itself takes the other two when it is ready for them: until then they would end it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED_FOR - {START, signal.SIGUSR1})
        os.environ[HERITAGE] = f"{handovers},{os.getppid()},{predecessor}"
        os.execv(command[0], command)  # noqa: S606 - the very command that started the first agent
    return pid


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
