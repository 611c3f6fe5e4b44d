"""The keeper of a tunnel: logs in again when it has died. Only where a login needs nobody's answer, and was asked for.

Without it nothing logs in by itself: a login is a person's decision, and asks for a second factor at many sites.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

from slurmbus.bootstrap import journal, ways
from slurmbus.bootstrap.background import Background, tell_ready
from slurmbus.bootstrap.entering import enter, master_of
from slurmbus.bootstrap.session import Remote
from slurmbus.home import Home
from slurmbus_protocol.errors import SlurmbusError

log = logging.getLogger(__name__)

LOOK_INTERVAL = 5.0
"""Seconds between two looks, each a question to a process of this machine."""
PAUSES = (5.0, 15.0, 60.0, 300.0)
"""Seconds after a login that failed: a site blocks whoever tries too often."""


def keeper_of(home: Home, site: str) -> Background:
    """Give the keeper of a site's tunnel, whether or not it runs."""
    return Background(home.path / "up", f"{site}.keeper", "slurmbus.bootstrap.keeper", (str(home.path), site))


class Quiet:
    """Tells the log."""

    def step(self, what: str, words: str) -> None:
        """Say what came of a step."""
        log.info("%s: %s", what, words)

    def note(self, words: str) -> None:
        """Say something."""
        log.info("%s", words)

    def progress(self, doing: str, done: int, total: int) -> None:
        """Show nothing."""


def keep(home: Home, site: str, stop: threading.Event) -> None:
    """Look after the tunnel until ``stop`` is set, or there is none to look after."""
    failures = 0
    pause = LOOK_INTERVAL
    while not stop.wait(pause):
        pause = LOOK_INTERVAL
        done = journal.read(home, site)
        login = home.site(site).login
        if done is None or done.way != "tunnel" or login is None or not login.tunnel_relogin:
            log.info("there is nothing to keep any more")
            return
        if master_of(home, site).alive:
            continue
        try:
            _again(home, site, done.servers[0])
            failures = 0
        except SlurmbusError as error:
            pause = PAUSES[min(failures, len(PAUSES) - 1)]
            failures += 1
            log.warning("no tunnel: %s; trying again in %.0f s", error, pause)


def _again(home: Home, site: str, server: str) -> None:
    master = enter(home, site, Quiet(), batch=True)
    try:
        with Remote(master) as remote:
            ways.open_again(master, remote, server, ways.target_of(home, home.site(site)))
    except BaseException:
        if master.opened:  # it would be taken for the tunnel
            master.close()
        raise
    log.info("the tunnel stands again")


def main(arguments: list[str]) -> int:
    """Keep the tunnel of a site until SIGTERM."""
    home, site, ready = Home(Path(arguments[0])), arguments[1], int(arguments[2])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    try:
        with keeper_of(home, site).alone():
            tell_ready(ready)
            keep(home, site, stop)
    except SlurmbusError as error:
        log.error("%s", error)  # noqa: TRY400 - the message says it all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
