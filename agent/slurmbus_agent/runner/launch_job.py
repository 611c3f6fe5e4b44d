"""One launch: what a launcher is given, and how it runs the payload."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from slurmbus_agent.runner import launch_files, payload
from slurmbus_agent.runner.launch_allocation import Allocation
from slurmbus_agent.runner.launch_errors import Interrupted
from slurmbus_agent.runner.launch_lines import Lines
from slurmbus_agent.runner.launch_loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from slurmbus_agent.runner.plan import Plan
    from slurmbus_agent.runner.signals import Signals

NEVER = 86400.0
"""Seconds of a turn in which nothing is due."""


class Launch:
    """A launch of one start.

    A launcher is a function ``launch(job: Launch) -> int``: it makes ready what the payload needs, calls :meth:`run`,
    and gives what that gave. What it started is its own to stop; whatever is left is killed by :meth:`close`.
    """

    def __init__(self, plan: Plan, start: int, runner: str, signals: Signals) -> None:
        self.plan = plan
        self.start = start
        self.runner = runner
        """The file of this program, the same on every node."""
        self.options = plan.launch
        """The plan's own fields."""
        self.allocation = Allocation.from_environment(os.environ)
        self.loop = Loop(signals)
        self._facts: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Write a line to the job's stderr."""
        sys.stderr.write(f"slurmbus: {text}\n")
        sys.stderr.flush()

    def tell(self, **facts: str) -> None:
        """Let people know something of this start while it runs, as text by name."""
        self._facts.update(facts)
        launch_files.facts(self.plan.folder, self.start, self._facts)

    def keep_secret(self, name: str, text: str) -> str:
        """Put something into a file of the job's folder that only its owner may read, and give the path."""
        path = f"{self.plan.folder}/{self.start}.{name}"
        launch_files.secret(path, text)
        return path

    def fail(self, words: str) -> None:
        """Say why the payload couldn't be run, in the job's stderr and in the runner's report."""
        self.say(words)
        with suppress(OSError):  # it stands in the stderr
            launch_files.trouble(self.plan.folder, self.start, words)

    def spawn(
        self, argv: list[str], env: Mapping[str, str], hear: Callable[[str], None], ended: Callable[[int], None]
    ) -> int:
        """Start a program beside the payload, in the job's folder; ``hear`` gets each line that it writes.

        Raises:
            NotStarted: it isn't there, or can't be executed.
        """
        reader, writer = os.pipe()
        try:
            running = payload.start(argv, dict(env), self.plan.cwd, writer, writer)
        except payload.NotStarted:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        lines = Lines(reader, hear)

        def ready() -> None:
            if not lines.read():
                self.loop.remove(reader)

        self.loop.add(reader, ready)
        self.loop.add_child(running.pid, ended)
        return running.pid

    def wait(self, done: Callable[[], bool], until: float) -> bool:
        """Let things happen until something is done (True) or a monotonic time is reached (False).

        Raises:
            Interrupted: a signal for the payload came.
        """
        while not done():
            if time.monotonic() >= until:
                return False
            for number in self.loop.turn(until):
                raise Interrupted(number)
        return True

    def run(
        self,
        argv: list[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int = 1,
        stderr: int = 2,
        base: Mapping[str, str] | None = None,
    ) -> int:
        """Run the payload to its end, and give its exit code, or minus the signal that ended it.

        Args:
            argv: instead of the payload's own words.
            env: further environment.
            stdout: the descriptor that it writes to.
            stderr: the same for its errors.
            base: the environment below ``env``, instead of this process' own.

        Raises:
            NotStarted: it isn't there, or can't be executed.
        """
        ends: list[int] = []
        whole = {**(os.environ if base is None else base), **(env or {})}
        running = payload.start(argv or self.plan.argv, whole, self.plan.cwd, stdout, stderr)
        self.loop.add_child(running.pid, ends.append)
        while not ends:
            for number in self.loop.turn(time.monotonic() + NEVER):
                running.send(number)
        return ends[0]

    def close(self) -> None:
        """Kill what is left below this process."""
        payload.kill_children()
