"""The local helper: a bus and an agent on this machine, for laptops, tests and CI."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slurmbus.errors import LocalNotStarted
from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings

LOCAL_SITE = "local"
STOP_TIMEOUT = 15.0
START_TIMEOUT = 30.0
"""The helper is ready within a second or two; a machine that is busy with other things gets more."""
_POLL = 0.01


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """The helper's folder inside a home: a home of its own, whose server nobody else runs."""

    home: Home

    @classmethod
    def of(cls, home: Home) -> LocalFolder:
        """Give the folder that belongs to a user's home."""
        return cls(Home(home.path / "local"))

    @property
    def lock(self) -> Path:
        """Held by the helper while it lives."""
        return self.home.path / "helper.lock"

    @property
    def users(self) -> Path:
        """Held (shared) by every process that uses the helper, so that it knows when nobody does."""
        return self.home.path / "users.lock"

    @property
    def starting(self) -> Path:
        """Held by whoever starts or stops the helper."""
        return self.home.path / "start.lock"

    @property
    def ready(self) -> Path:
        """Written by the helper when it is ready: its process id and the address of its bus."""
        return self.home.path / "helper.json"

    @property
    def log(self) -> Path:
        """What the helper says."""
        return self.home.path / "helper.log"

    @property
    def agent_log(self) -> Path:
        """What its agent says."""
        return self.home.path / "agent.log"

    @property
    def spool(self) -> Path:
        """The agent's spool."""
        return self.home.path / "spool"

    def make(self) -> None:
        """Make the folder, and the home around it, where they are missing."""
        around = self.home.path.parent
        around.parent.mkdir(parents=True, exist_ok=True)
        around.mkdir(mode=0o700, exist_ok=True)
        self.home.make()

    def is_alive(self) -> bool:
        """True while a helper holds its lock."""
        descriptor = open_lock(self.lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def pid(self) -> int | None:
        """Give the process id of the helper that is ready, or None."""
        try:
            return int(json.loads(self.ready.read_text())["pid"])
        except FileNotFoundError:
            return None

    def is_from_before_tls(self) -> bool:
        """True when the helper that is ready doesn't encrypt its bus: this version's clients don't speak to it."""
        try:
            return str(json.loads(self.ready.read_text())["url"]).startswith("nats://")
        except FileNotFoundError:
            return False


def ensure_local(home: Home | None = None) -> tuple[ConnectionSettings, str]:
    """Give the connection and the site's name of this user's local helper, starting it when it doesn't run.

    The helper (``python -m slurmbus.helper``) is one process per user and home, found by a lock. It ends by itself when
    no process that called this lives any more and no job is unfinished for a minute (``SLURMBUS_LOCAL_IDLE`` seconds,
    read by the process that starts it); jobs outlive the steps that started them, and the helper.

    Args:
        home: None is the user's own.

    Raises:
        LocalNotStarted: it didn't come up; its log stands in the message.
    """
    folder = LocalFolder.of(home or Home.default())
    folder.make()
    _users.hold(folder.users)
    with _exclusive(folder.starting):
        if folder.is_alive() and folder.is_from_before_tls():
            _stop(folder, STOP_TIMEOUT)
        if folder.is_alive():
            _wait_until_ready(folder)
        else:
            _start(folder)
    return ConnectionSettings.of_site(folder.home, LOCAL_SITE), LOCAL_SITE


def stop_local(home: Home | None = None, *, timeout: float = STOP_TIMEOUT) -> bool:
    """Stop the helper and wait until it is gone; jobs go on. False when none was running.

    A helper that isn't gone after ``timeout`` seconds is killed; its server and its agent end with it.
    """
    folder = LocalFolder.of(home or Home.default())
    if not folder.lock.exists():
        return False
    with _exclusive(folder.starting):
        return _stop(folder, timeout)


def _stop(folder: LocalFolder, timeout: float) -> bool:
    pid = folder.pid() if folder.is_alive() else None
    if pid is None:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + timeout
        while folder.is_alive() and time.monotonic() < deadline:
            time.sleep(_POLL)
    return True


def open_lock(path: Path) -> int:
    """Open a lock file; closing the descriptor gives the lock free."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    descriptor = open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Users:
    """The shared locks that this process holds for its life; a forked child inherits them."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], int] = {}

    def hold(self, path: Path) -> None:
        descriptor = open_lock(path)
        status = os.fstat(descriptor)
        file = (status.st_dev, status.st_ino)  # not its path: the home may have been removed and made again
        if file in self._held:
            os.close(descriptor)
            return
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits while a helper that saw no users is stopping
        self._held[file] = descriptor


_users = _Users()


def _start(folder: LocalFolder) -> None:
    folder.ready.unlink(missing_ok=True)
    with folder.log.open("ab") as log:
        # It forks itself away before this returns, and holds its lock by then.
        done = subprocess.run(
            [sys.executable, "-m", "slurmbus.helper", "--folder", str(folder.home.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder.home.path,
            check=False,
        )
    if done.returncode != 0:
        raise _not_started(folder, f"it ended with exit code {done.returncode}")
    _wait_until_ready(folder)


def _wait_until_ready(folder: LocalFolder) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not folder.ready.exists():
        if not folder.is_alive():
            raise _not_started(folder, "it ended")
        if time.monotonic() > deadline:
            raise _not_started(folder, f"it isn't ready after {START_TIMEOUT:.0f} s")
        time.sleep(_POLL)


def _not_started(folder: LocalFolder, what: str) -> LocalNotStarted:
    lines = folder.log.read_text(errors="replace").splitlines() if folder.log.exists() else []
    tail = "\n".join(lines[-10:])
    return LocalNotStarted(f"the local helper didn't come up: {what}\n{tail}", hint=f"see {folder.log}")
