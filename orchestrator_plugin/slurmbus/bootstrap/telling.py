"""Who shows a person how far a set-up is."""

from __future__ import annotations

from typing import Protocol


class Teller(Protocol):
    """Shows a person how far it is."""

    def step(self, what: str, words: str) -> None:
        """Say what came of a step."""
        ...

    def note(self, words: str) -> None:
        """Say something that a person should know."""
        ...

    def progress(self, doing: str, done: int, total: int) -> None:
        """Show how much of something is done; a total of 0 isn't known."""
        ...
