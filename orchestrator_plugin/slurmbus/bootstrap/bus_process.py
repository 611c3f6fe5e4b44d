"""The home's own bus in the background: ``slurmbus up`` starts it when nothing else runs it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from slurmbus.bootstrap.background import Background, tell_ready
from slurmbus.home import Home
from slurmbus.owner import run_bus
from slurmbus_protocol.errors import SlurmbusError


def bus_of(home: Home) -> Background:
    """Give the process that runs the bus of a home, whether or not it runs."""
    return Background(home.path / "up", "bus", "slurmbus.bootstrap.bus_process", (str(home.path),))


def stop(home: Home) -> bool:
    """End it; False when it didn't run."""
    return bus_of(home).stop()


def main(arguments: list[str]) -> int:
    """Run the bus until SIGTERM."""
    home, ready = Home(Path(arguments[0])), int(arguments[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    try:
        with bus_of(home).alone():
            run_bus(home, ready=lambda _url: tell_ready(ready))
    except SlurmbusError as error:
        logging.error("%s", error)  # noqa: LOG015, TRY400 - the message says it all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
