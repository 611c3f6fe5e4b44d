"""The bus of the cluster's tests, on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurmbus.home import Home
from slurmbus.owner import LOOK_INTERVAL, ServerOwner


@contextmanager
def running_home(folder: Path, host: str) -> Iterator[Home]:
    """Run a bus that the cluster's hosts reach under this address."""
    home = Home(folder)
    stop, ready = threading.Event(), threading.Event()

    def own() -> None:  # the server dies with the thread that started it
        with ServerOwner(home, host) as owner:
            ready.set()
            while not stop.wait(LOOK_INTERVAL):
                owner.look()

    thread = threading.Thread(target=own, name="bus")
    thread.start()
    try:
        assert ready.wait(30), "the bus didn't come up"
        yield home
    finally:
        stop.set()
        thread.join()
