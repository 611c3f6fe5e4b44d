"""``python -m slurmbus.helper``: the process behind :func:`slurmbus.local.ensure_local`.

It owns an embedded server and an agent whose jobs are local processes, starts them again when they die, and ends when
nobody needs it any more. When it is killed, both die with it (on Linux); jobs go on, and the next helper finds them.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import msgspec

from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.errors import LocalNotStarted
from slurmbus.forgetting import granting_wishes
from slurmbus.home import Home, free_port
from slurmbus.local import LOCAL_SITE, LocalFolder, open_lock
from slurmbus.owner import LOOK_INTERVAL, ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import WrongSequence
from slurmbus_protocol.embedded import die_with_parent
from slurmbus_protocol.errors import BusUnreachable, SiteUnreachable, SlurmbusError
from slurmbus_protocol.messages import Heartbeat, Ping
from slurmbus_protocol.private_files import write_private

log = logging.getLogger(__name__)

IDLE_VARIABLE = "SLURMBUS_LOCAL_IDLE"
IDLE = 60.0
"""Seconds without users and jobs until it ends: the next run within a minute finds it warm."""
SILENT_AGENT = 600.0
"""Seconds after which an agent that never answers counts as idle: nobody is there whom it could serve."""
AGENT_DELAYS = (0.1, 0.5, 2.0, 10.0)
"""Pauses before an agent that died is started again."""
AGENT_STEADY = 30.0
"""An agent that lived that many seconds didn't die of its start."""
AGENT_STOP_TIMEOUT = 10.0
READY_TIMEOUT = 25.0
CHECK_INTERVAL = 1.0
LOG_LIMIT = 4 * 1024 * 1024


class AgentProcess:
    """The agent's process, started again when it dies."""

    def __init__(self, folder: LocalFolder, client: SiteClient) -> None:
        self._folder = folder
        self._client = client
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._start_at = 0.0
        self.deaths = 0
        """Deaths in a row, each soon after the start."""

    def look(self) -> None:
        """Start it when it doesn't run, after a pause when it died."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            if time.monotonic() - self._started > AGENT_STEADY:
                self.deaths = 0
            delay = AGENT_DELAYS[min(self.deaths, len(AGENT_DELAYS) - 1)]
            self.deaths += 1
            log.warning("the agent ended with exit code %d and is started again in %.1f s", code, delay)
            self._process = None
            self._start_at = time.monotonic() + delay
        if time.monotonic() >= self._start_at:
            try:
                self._client.connection.run(_release_lease_of_the_dead(self._client), timeout=5)
            except (BusUnreachable, TimeoutError) as error:
                log.warning("the agent waits for the bus: %s", error)
                return
            self._start()

    def _start(self) -> None:
        bundle = self._folder.home.bundle_path(LOCAL_SITE)
        with self._folder.agent_log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "slurmbus_agent", "run", "--site", LOCAL_SITE, "--config", str(bundle)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - a bare system call
            )
        self._started = time.monotonic()

    def stop(self) -> None:
        """Stop it; jobs go on."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(AGENT_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.warning("the agent didn't stop and is killed")
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """Give the end of its log."""
        return "\n".join(self._folder.agent_log.read_text(errors="replace").splitlines()[-5:])


async def _release_lease_of_the_dead(client: SiteClient) -> None:
    """Give up the lease of an agent that died here, so that the next one needn't wait until it has run out."""
    bus = await client.connection.session.site_bus(LOCAL_SITE)
    found = await bus.last(f"KV_{subjects.AGENTS_BUCKET}", subjects.lease(LOCAL_SITE))
    if found is None:
        return
    holder = codec.decode_as(found.data, Heartbeat)
    if holder.released or holder.host != platform.node() or _lives(holder.pid):
        return
    released = codec.encode(msgspec.structs.replace(holder, released=True))
    with contextlib.suppress(WrongSequence):  # then somebody else holds it
        await bus.publish(subjects.lease(LOCAL_SITE), released, expected_last=found.sequence)


def _lives(pid: int) -> bool:
    """Tell whether a process still runs; on Linux a zombie, which nobody has waited for yet, doesn't."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return status.read_text().rpartition(")")[2].split()[0] != "Z"  # the name before it may hold anything
        except (FileNotFoundError, ProcessLookupError):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Idleness:
    """How long nobody has needed the helper: no user's process lives, and no job is unfinished."""

    def __init__(self, folder: LocalFolder, client: SiteClient) -> None:
        self._client = client
        self._users = open_lock(folder.users)
        self._quiet_since: float | None = None
        self._silent_since: float | None = None

    def seconds(self) -> float:
        """Give how long, with 0 when somebody needs it now."""
        if self._has_users() or not self._jobs_are_done():
            self._quiet_since = None
            return 0.0
        now = time.monotonic()
        self._quiet_since = self._quiet_since or now
        return now - self._quiet_since

    def close_door(self) -> bool:
        """Keep new users waiting until this process has ended; False when one was faster."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _has_users(self) -> bool:
        if not self.close_door():
            return True
        fcntl.flock(self._users, fcntl.LOCK_UN)
        return False

    def _jobs_are_done(self) -> bool:
        try:
            waiting = self._client.connection.run(_waiting_requests(self._client), timeout=10)
            busy = waiting or self._client.ask("info", Ping(sent_at=time.time()), Heartbeat).vitals.jobs
        except (SiteUnreachable, BusUnreachable, TimeoutError):
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            return now - self._silent_since > SILENT_AGENT
        self._silent_since = None
        return not busy


async def _waiting_requests(client: SiteClient) -> int:
    """How many requests the agent hasn't taken yet."""
    bus = await client.connection.session.site_bus(LOCAL_SITE)
    info = await bus.api(f"CONSUMER.INFO.{subjects.REQUESTS}.{subjects.consumer(LOCAL_SITE)}")
    return int(info["num_pending"]) + int(info["num_ack_pending"])


def serve(folder: LocalFolder, idle: float, stop: threading.Event) -> None:
    """Run server and agent until nobody needs them or ``stop`` is set.

    Raises:
        LocalNotStarted: the agent doesn't come up.
        BusUnreachable: the server doesn't come up.
    """
    home = folder.home
    home.add_site(LOCAL_SITE, scheduler="local", spool=str(folder.spool), python=sys.executable)
    owner = _own_server(home)
    connection = Connection.get(ConnectionSettings.of_site(home, LOCAL_SITE))
    client = SiteClient(connection, LOCAL_SITE)
    agent = AgentProcess(folder, client)
    with owner:
        try:
            agent.look()
            _get_ready(client, agent, stop)
            ready = {"pid": os.getpid(), "url": owner.address.url}
            write_private(folder.ready, json.dumps(ready).encode())
            log.info("ready on %s", owner.address.url)
            with granting_wishes(connection):
                _watch(owner, agent, Idleness(folder, client), idle, stop)
        finally:
            folder.ready.unlink(missing_ok=True)
            agent.stop()
            connection.close()


def _own_server(home: Home) -> ServerOwner:
    """Prepare the server, on another port when somebody else has taken ours since the last time."""
    owner = ServerOwner(home)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((owner.address.host, owner.address.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            log.warning("port %d is taken by somebody else", owner.address.port)
            return ServerOwner(home, port=free_port(owner.address.host))
    return owner


def _get_ready(client: SiteClient, agent: AgentProcess, stop: threading.Event) -> None:
    """Set the bus up, which the agent waits for, and wait for its answer."""
    deadline = time.monotonic() + READY_TIMEOUT
    while not stop.wait(0.02):
        agent.look()
        try:
            client.ask("info", Ping(sent_at=time.time()), Heartbeat, timeout=2.0)
        except (SiteUnreachable, BusUnreachable) as error:
            if agent.deaths >= len(AGENT_DELAYS) - 1 or time.monotonic() > deadline:
                raise LocalNotStarted(f"the agent doesn't come up:\n{agent.last_words()}") from error
        else:
            return


def _watch(owner: ServerOwner, agent: AgentProcess, idleness: Idleness, idle: float, stop: threading.Event) -> None:
    check_at = time.monotonic() + CHECK_INTERVAL
    while not stop.wait(LOOK_INTERVAL):
        owner.look()
        agent.look()
        if time.monotonic() < check_at:
            continue
        if idleness.seconds() >= idle and idleness.close_door():
            log.info("nobody has needed this for %.0f s: ending", idle)
            return
        check_at = time.monotonic() + min(CHECK_INTERVAL, max(idle / 4, LOOK_INTERVAL))


def main(argv: list[str] | None = None) -> int:
    """Take the lock, go into the background and serve; 0 also when another helper holds the lock."""
    parser = argparse.ArgumentParser(prog="slurmbus.helper", description="Slurmbus' local helper.")
    parser.add_argument("--folder", type=Path, required=True)
    folder = LocalFolder(Home(parser.parse_args(argv).folder))
    lock = open_lock(folder.lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    if os.fork():
        return 0  # the child has inherited the lock
    folder.ready.unlink(missing_ok=True)
    for path in (folder.log, folder.agent_log):
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name(f"{path.name}.1"))
    logging.basicConfig(
        filename=folder.log, level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", force=True
    )
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        serve(folder, float(os.environ.get(IDLE_VARIABLE, IDLE)), stop)
    except SlurmbusError as error:
        log.error("%s", error)  # noqa: TRY400 - the message says it all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
