"""``slurmbus-agent ensure``, ``stop`` and ``status``: one agent a host that goes on after the logout.

``ensure`` may be called as often as one likes, also by cron every few minutes: it starts the agent when it isn't there.
With ``replace`` another process takes over from the one that runs: the new one is started first and stands by, then the
old one is asked to end, and gives up its lease. Jobs don't notice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from slurmbus_agent import presence
from slurmbus_agent.config import AgentConfig
from slurmbus_agent.presence import Places, Presence
from slurmbus_protocol.errors import SlurmbusError

START_PATIENCE = 30.0
"""Seconds until a process that was started has said that it is there: cold file systems."""
STAND_BY_PATIENCE = 60.0
"""Seconds that a successor may take to reach the bus; after that the old one stays."""
STOP_PATIENCE = 30.0
LOOK_INTERVAL = 0.1
_LAST_WORDS = 2000
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems answer that know no locks."""


class AgentNotStarted(SlurmbusError):
    """The agent didn't come up."""

    code: ClassVar[str] = "agent-not-started"


class AgentNotStopped(SlurmbusError):
    """The agent didn't end."""

    code: ClassVar[str] = "agent-not-stopped"


class Outcome(NamedTuple):
    """What ``ensure`` did."""

    presence: Presence
    did: str
    """``nothing``, ``started`` or ``replaced``."""


def ensure(config: AgentConfig, path: Path, *, replace: bool = False) -> Outcome:
    """Start the agent of this host when none runs.

    Args:
        config: of the site.
        path: of the configuration.
        replace: also when one runs: from another environment, or with another configuration.

    Raises:
        AgentNotStarted: it ended at once, or a successor didn't reach the bus; the message has its last words.
        AgentNotStopped: the old one doesn't end.
    """
    places = Places(config.spool_root)
    places.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(places):
        old = places.read()
        if old is not None and not old.alive:
            old = None
        if old is not None and not replace:
            return Outcome(old, "nothing")
        new = _start(config, path, places)
        if old is None:
            return Outcome(new, "started")
        try:
            new = _await_ready(places, new)
        except AgentNotStarted:
            new.stop()
            raise
        _stop(old)
        return Outcome(new, "replaced")


def stop(config: AgentConfig) -> Presence | None:
    """End the agent of this host, and give who it was; None when there was none. Jobs go on.

    Raises:
        AgentNotStopped: it doesn't end.
    """
    places = Places(config.spool_root)
    found = places.read()
    if found is None or not found.alive:
        return None
    with _alone(places):
        _stop(found)
    return found


def _start(config: AgentConfig, path: Path, places: Places) -> Presence:
    command = [sys.executable, "-m", "slurmbus_agent", "run", "--site", config.site, "--config", str(path.absolute())]
    with places.last_words.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--log-file"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
        )
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None:
            raise AgentNotStarted(f"the agent ended at once, with {code}: {_words(places)}")
        found = places.read()
        if found is not None and found.pid == process.pid:
            process.returncode = 0  # it outlives us, which is no mistake to be warned of
            return found
        time.sleep(LOOK_INTERVAL)
    process.kill()
    process.wait()
    raise AgentNotStarted(f"the agent didn't come up within {START_PATIENCE:g} s: {_words(places)}")


def _await_ready(places: Places, new: Presence) -> Presence:
    deadline = time.monotonic() + STAND_BY_PATIENCE
    while time.monotonic() < deadline and new.alive:
        found = places.read()
        if found is not None and found.pid == new.pid and found.ready:
            return found
        time.sleep(LOOK_INTERVAL)
    raise AgentNotStarted(f"the new agent didn't reach the bus; the old one goes on: {_words(places)}")


def _stop(found: Presence) -> None:
    found.stop()
    deadline = time.monotonic() + STOP_PATIENCE
    while found.alive:
        if time.monotonic() > deadline:
            raise AgentNotStopped(
                f"the agent (process {found.pid} on {found.host}) doesn't end", hint=f"kill -9 {found.pid}"
            )
        time.sleep(LOOK_INTERVAL)


def _words(places: Places) -> str:
    for path in (places.last_words, places.log):
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text(errors="replace").strip()
            if text:
                return text[-_LAST_WORDS:]
    return "it said nothing"


@contextlib.contextmanager
def _alone(places: Places) -> Iterator[None]:
    """Let one after the other start or stop the agent of this host; the lease holds without it, too."""
    descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def describe(config: AgentConfig) -> tuple[list[str], bool]:
    """Give what is known of the agents of this spool, a line each, and whether one runs on this host."""
    places = Places(config.spool_root)
    lines = []
    for one in places.everywhere():
        if one.alive:
            word = "runs" if one.ready else "runs, and hasn't reached the bus yet"
        else:
            word = "is gone" if one.host == presence.mine(ready=False).host else "on another host: ask there"
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.since))
        lines.append(f"{one.host}: process {one.pid} {word}; version {one.version}, since {began}, from {one.program}")
    here = places.read()
    return lines, here is not None and here.alive
