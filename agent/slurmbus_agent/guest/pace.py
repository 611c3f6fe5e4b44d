"""How fast the agent works."""

from __future__ import annotations


class Pace:
    """How much longer than usual everything takes that can wait; one that nobody sets is the usual pace."""

    def __init__(self) -> None:
        self.stretch = 1.0
