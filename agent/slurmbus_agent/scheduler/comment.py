"""The comment of a job in Slurm: first what Slurmbus notes, for people and scripts, then the user's own."""

from __future__ import annotations

from collections.abc import Mapping

LENGTH = 1000
"""Longest comment; Slurm itself takes much longer ones, and every squeue of the site would carry them."""
_LEAST_ROOM_FOR_THEIRS = 300
_SEPARATOR = " ; "


def compose(labels: Mapping[str, str], own: str | None) -> str:
    """Give ``name=value name=value ; the user's own``.

    In the values a ``;`` becomes a ``,``: everything up to the first ``;`` is Slurmbus'.
    """
    ours = " ".join(f"{name}={value}".replace(";", ",") for name, value in sorted(labels.items()))
    if not own:
        return ours[:LENGTH]
    room = LENGTH - len(own[:_LEAST_ROOM_FOR_THEIRS]) - len(_SEPARATOR)
    return f"{ours[:room]}{_SEPARATOR}{own}".lstrip()[:LENGTH]
