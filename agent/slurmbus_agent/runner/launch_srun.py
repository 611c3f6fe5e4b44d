"""A step of the job in the payload's place, which ends as the first of its tasks that failed. Source: srun(1)."""

from __future__ import annotations

import re
import signal

from slurmbus_agent.runner.launch_lines import how_it_ended
from slurmbus_agent.runner.launch_output import Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from slurmbus_agent.runner.launch_job import Launch

_SAYS = re.compile(r"srun: error: (\S+): tasks? (\S+): (?:Exited with exit code (\d+)|(.+?)(?: \(core dumped\))?)$")
_ABORTS = re.compile(r"application called MPI_Abort\(.*, (\d+)\) - process (\d+)")
"""MPICH's own words; srun doesn't tell the exit code of a rank that calls it."""
_ENDED_BY_SLURM = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGCONT)
"""What srun itself sends to tasks; who ends by one of these may be a victim."""


class FirstEnd:
    """Which task of a step failed first, as srun says it. srun's own exit code is the highest of all tasks'."""

    def __init__(self) -> None:
        self.status: int | None = None
        """Its exit code, or minus the signal."""
        self.task = ""
        self.node = ""
        """`` on c1``; nothing when it isn't known."""

    def see(self, line: str) -> None:
        """Look at a line of srun's stderr."""
        if self.status is not None:
            return
        found, aborts = _SAYS.search(line), _ABORTS.search(line)
        if aborts is not None:
            self.status, self.task = int(aborts[1]) % 256 or 1, aborts[2]
        elif found is not None:
            node, task, code, words = found.groups()
            status = int(code) if code else -_number(words)
            if status:
                self.node, self.task, self.status = f" on {node}", task, status

    @property
    def tells(self) -> bool:
        """Whether it ended by itself."""
        return self.status is not None and -self.status not in _ENDED_BY_SLURM


def _number(words: str) -> int:
    return next((int(one) for one in signal.valid_signals() if signal.strsignal(one) == words), 0)


def run(
    job: Launch,
    argv: list[str],
    env: Mapping[str, str],
    noun: str,
    rewrite: Callable[[str], str] | None = None,
    see: Callable[[str], None] | None = None,
) -> int:
    """Run a step, and give the exit code, or minus the signal, of the task that failed first.

    Args:
        job: the launch.
        argv: the srun.
        env: the srun's whole environment.
        noun: what a task is called when one fails.
        rewrite: gives what stands in the output in a line's place.
        see: is told each line of stderr, too.
    """
    first = FirstEnd()

    def seen(line: str) -> None:
        first.see(line)
        if see is not None:
            see(line)

    stderr = Output(job.loop, 2, see=seen, rewrite=rewrite)
    stdout = Output(job.loop, 1, rewrite=rewrite) if rewrite is not None else None
    try:
        status = job.run(argv, None, stdout.writer if stdout is not None else 1, stderr.writer, env)
    finally:
        stderr.finish()
        if stdout is not None:
            stdout.finish()
    if status == 0 or first.status is None:
        return status
    if first.tells:
        job.say(f"{noun} {first.task}{first.node} ended with {how_it_ended(first.status)}, and so did the others")
    return first.status
