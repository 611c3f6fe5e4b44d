"""The home's own bus in the background: ``slurmbus up`` starts it when nothing else runs it, ``down`` ends it.

The process holds a lock while it lives, and its id stands in the locked file.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from slurmbus.home import Home
from slurmbus.local import open_lock
from slurmbus.owner import run_bus
from slurmbus_protocol.errors import BusUnreachable, SlurmbusError

START_PATIENCE = 20.0
STOP_PATIENCE = 20.0
LOOK_INTERVAL = 0.05
_TAIL = 5


def _lock(home: Home) -> Path:
    return home.path / "up" / "bus.lock"


def log_file(home: Home) -> Path:
    """Where it writes what happens."""
    return home.path / "up" / "bus.log"


def process(home: Home) -> int | None:
    """Give the id of the process, or None when there is none."""
    path = _lock(home)
    if not path.exists():
        return None
    lock = open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = path.read_text().strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(lock)
    return None


def start(home: Home) -> int:
    """Start it, and give its process when the bus takes connections.

    Raises:
        BusUnreachable: it doesn't come up; the message has its last words.
    """
    home.make()
    _lock(home).parent.mkdir(mode=0o700, exist_ok=True)
    read, write = os.pipe()
    with log_file(home).open("ab") as log, os.fdopen(read, "rb") as told:
        started = subprocess.Popen(
            [sys.executable, "-m", "slurmbus.bootstrap.bus_process", str(home.path), str(write)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(write,),
            start_new_session=True,
        )
        os.close(write)
        if told.read() != b"ready":  # the other end is closed when it ends, too
            started.wait(START_PATIENCE)
            tail = log_file(home).read_text(errors="replace").splitlines()[-_TAIL:]
            raise BusUnreachable(f"the bus doesn't come up: {' / '.join(tail)}", hint="try 'slurmbus bus run'")
    started.returncode = 0  # it outlives us, which is no mistake to be warned of
    return started.pid


def stop(home: Home) -> bool:
    """End it; False when it didn't run.

    Raises:
        BusUnreachable: it doesn't end.
    """
    pid = process(home)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_PATIENCE
    while process(home) is not None:
        if time.monotonic() > deadline:
            raise BusUnreachable(f"the bus (process {pid}) doesn't end", hint=f"kill -9 {pid}")
        time.sleep(LOOK_INTERVAL)
    return True


def main(arguments: list[str]) -> int:
    """Take the lock and run the bus until SIGTERM."""
    home, ready = Home(Path(arguments[0])), int(arguments[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    lock = open_lock(_lock(home))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logging.exception("another process runs the bus of %s", home.path)  # noqa: LOG015
        return 1
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)

    def tell(_url: str) -> None:
        os.write(ready, b"ready")
        os.close(ready)

    try:
        run_bus(home, ready=tell)
    except SlurmbusError as error:
        logging.error("%s", error)  # noqa: LOG015, TRY400 - the message says it all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
