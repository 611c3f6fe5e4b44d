"""Sizes and times as people write them."""

from __future__ import annotations


def size(number: float) -> str:
    """Write a number of bytes for people: 1 GiB, 1.02 GiB, 512 MiB."""
    value, unit = float(number), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:  # noqa: PLR2004 - the units' own step
            break
        value, unit = value / 1024, larger
    return f"{value:.2f}".rstrip("0").rstrip(".") + f" {unit}"


def minutes(number: int) -> str:
    """Write minutes for people: 1 minute, 90 minutes."""
    return "1 minute" if number == 1 else f"{number} minutes"


def clock(number: int) -> str:
    """Write minutes as Slurm does: 01:30:00, 2-00:00:00."""
    hours, rest = divmod(number, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{rest:02}:00" if days else f"{hours:02}:{rest:02}:00"
