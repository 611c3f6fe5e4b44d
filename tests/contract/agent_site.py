"""A site whose agent is the real process: jobs are processes of this machine, the server is the embedded one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from contract.bus_site import BusSite, bus_site, wait_until
from slurmbus.events import Event, Output
from slurmbus_protocol.messages import CommandPlan, JobSpec
from slurmbus_protocol.streams import BusLimits
from slurmbus_protocol.subjects import Stream

SITE = "scripted"


@dataclass
class RealAgent:
    """An agent's process."""

    site: BusSite
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        bundle = self.site.home.bundle_path(SITE)
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slurmbus_agent", "run", "--site", SITE, "--config", str(bundle)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_it_serves(self) -> None:
        wait_until(self._serves, f"the agent; see {self.folder / 'agent.log'}", 60.0)

    def _serves(self) -> bool:
        return any(
            status.alive and status.heartbeat.leader and self.process and status.heartbeat.pid == self.process.pid
            for status in self.site.client.heartbeats()
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


@contextmanager
def agent_site(
    folder: Path, limits: BusLimits | None = None, *, spool: Path | None = None
) -> Iterator[tuple[BusSite, RealAgent]]:
    """Start it all.

    Args:
        folder: for everything.
        limits: of the streams.
        spool: of the agent, when it isn't in there.
    """
    with bus_site(folder, limits) as site:
        site.home.add_site(SITE, scheduler="local", spool=str(spool or folder / "spool"), python=sys.executable)
        agent = RealAgent(site, folder)
        agent.start()
        try:
            agent.wait_until_it_serves()
            yield site, agent
        finally:
            agent.stop()


def shell(script: str, **fields: object) -> JobSpec:
    return JobSpec(name="outage", plan=CommandPlan(argv=("sh", "-c", script)), **fields)  # type: ignore[arg-type]


def counting(release: Path, *, before: int, after: int) -> str:
    """Shell that counts, waits for a file (though not for ever), and counts on."""
    return (
        f"seq -f '%07g' 1 {before}; for _ in $(seq 2400); do test -e {release} && break; sleep 0.05; done; "
        f"seq -f '%07g' {before + 1} {before + after}"
    )


def counted(upto: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(1, upto + 1))


def size(events: list[Event], stream: Stream = Stream.STDOUT) -> int:
    return sum(len(event.data) for event in events if isinstance(event, Output) and event.stream is stream)
