"""Processes of this machine that go on in the background: each holds a lock, and its id stands in the locked file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from slurmbus.errors import LocalNotStarted
from slurmbus.local import open_lock

START_PATIENCE = 20.0
STOP_PATIENCE = 20.0
LOOK_INTERVAL = 0.05
_READY = b"ready"


class Background:
    """One such process.

    Args:
        folder: for its lock and its log.
        name: of both.
        module: what it runs, as ``python -m MODULE ARGUMENTS… DESCRIPTOR``.
        arguments: for it.
    """

    def __init__(self, folder: Path, name: str, module: str, arguments: tuple[str, ...]) -> None:
        self._lock = folder / f"{name}.lock"
        self.log = folder / f"{name}.log"
        self._module = module
        self._arguments = arguments

    @property
    def process(self) -> int | None:
        """Its id; None when it doesn't run."""
        if not self._lock.exists():
            return None
        lock = open_lock(self._lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = self._lock.read_text().strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(lock)
        return None

    def start(self) -> int:
        """Start it, and give its id when it says that it is ready.

        Raises:
            LocalNotStarted: it doesn't come up; the message has its last words.
        """
        self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        read, write = os.pipe()
        with self.log.open("ab") as log, os.fdopen(read, "rb") as told:
            started = subprocess.Popen(
                [sys.executable, "-m", self._module, *self._arguments, str(write)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=(write,),
                start_new_session=True,
            )
            os.close(write)
            if told.read() != _READY:  # the other end is closed when it ends, too
                started.wait(START_PATIENCE)
                last = (self.log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1]
                raise LocalNotStarted(f"{self.log.stem} doesn't come up: {last}", hint=f"its log is {self.log}")
        started.returncode = 0  # it outlives us, which is no mistake to be warned of
        return started.pid

    def stop(self) -> bool:
        """End it; False when it didn't run.

        Raises:
            LocalNotStarted: it doesn't end.
        """
        pid = self.process
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_PATIENCE
        while self.process is not None:
            if time.monotonic() > deadline:
                raise LocalNotStarted(f"process {pid} doesn't end", hint=f"kill -9 {pid}")
            time.sleep(LOOK_INTERVAL)
        return True

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In the process itself: hold the lock; LocalNotStarted when another one does."""
        lock = open_lock(self._lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise LocalNotStarted("another one runs already") from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            os.close(lock)


def tell_ready(descriptor: int) -> None:
    """In the process itself: say that it is ready."""
    os.write(descriptor, _READY)
    os.close(descriptor)
