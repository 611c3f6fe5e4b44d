"""What may end a launch before its payload ends it."""

from __future__ import annotations

from slurmbus_agent.runner.protocol import EXIT_SETUP


class LaunchFailed(Exception):
    """Something that the payload needs can't be had; the message goes to people and says what to do."""

    def __init__(self, message: str, exit_code: int = EXIT_SETUP) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(Exception):
    """A signal that is meant for the payload came before there was one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number
