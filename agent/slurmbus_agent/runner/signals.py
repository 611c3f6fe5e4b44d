"""Signals that come to the batch script."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What Slurm or a user sends to the batch script is meant for the payload. Source: sbatch(1), --signal=B:."""


class Signals:
    """Signals as something that can be polled: ``descriptor`` becomes readable when one comes."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.descriptor, writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in FORWARDED:
            signal.signal(number, lambda number, _frame: self.pending.append(number))

    def take(self) -> list[int]:
        """Give the signals that came and are meant for the payload."""
        with suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        taken, self.pending = self.pending, []
        return taken
