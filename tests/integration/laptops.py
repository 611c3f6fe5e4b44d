"""A person's own machine: a folder of its own, from which sites are set up with the command as a person does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration.logins import Logins
from integration.terminal import Terminal
from slurmbus.bootstrap.bus_process import bus_of
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.home import Home, free_port
from slurmbus.settings import ConnectionSettings
from slurmbus_cluster import Cluster

COMMAND = (sys.executable, "-c", "import sys; from slurmbus.cli import main; sys.exit(main())")
PATIENCE = 180.0


@dataclass(frozen=True)
class Said:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


class Laptop:
    """One machine.

    Args:
        folder: what it keeps.
        logins: its ways into the cluster.
        cache: where what is brought to sites is kept.
        listen: where its bus listens; None: on the loopback, as long as nothing else is said.
    """

    def __init__(self, folder: Path, logins: Logins, cache: Path, listen: str | None = None) -> None:
        self.home = Home(folder / "slurmbus")
        self.logins = logins
        if listen is not None:
            self.home.set_bus_address(listen, websocket=free_port(listen))
        # For sockets, whose paths must be short; no other run of these tests on this machine meets them.
        self._runtime = tempfile.mkdtemp(prefix="sb-")
        self._env = {
            "XDG_RUNTIME_DIR": self._runtime,
            "SLURMBUS_HOME": str(self.home.path),
            "SLURMBUS_CACHE": str(cache),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    @property
    def cluster(self) -> Cluster:
        return self.logins.cluster

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, **self._env, **(more or {})}

    def slurmbus(self, *arguments: str, env: Mapping[str, str] | None = None, ok: bool = True) -> Said:
        """Run the command, with nobody to ask."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        said = Said(done.returncode, done.stdout, done.stderr)
        assert not ok or said.code == 0, f"slurmbus {' '.join(arguments)}: {said.code}\n{said.text}"
        return said

    def terminal(self, *arguments: str) -> Terminal:
        """Run the command in a terminal, with a person before it."""
        return Terminal([*COMMAND, *arguments], self.environment())

    def arguments(self, site: str, user: str, host: str, *more: str) -> list[str]:
        return ["up", site, "--host", host, "--user", user, "--ssh-config", str(self.logins.config), *more]

    @contextmanager
    def up(
        self, user: str, host: str = "login", *more: str, env: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, Said]]:
        """Set up a site of this user, for as long as the block lasts; give its name and what the command said."""
        site = f"site-{user}"
        try:
            yield site, self.slurmbus(*self.arguments(site, user, host, *more), env=env)
        finally:
            self.slurmbus("down", site, env=env, ok=False)

    @contextmanager
    def client(self, site: str) -> Iterator[SiteClient]:
        """Give a client of a site, which dials this machine's bus."""
        connection = Connection.get(ConnectionSettings.of_site(self.home, site))
        try:
            yield SiteClient(connection, site)
        finally:
            connection.close()

    def run_job(self, site: str, *command: str) -> Said:
        """Run a job at a site, and give what it wrote."""
        return self.slurmbus("submit", "--site", site, "--", *command)

    def close(self) -> None:
        """End what runs here beyond the commands: the bus."""
        bus_of(self.home).stop()
        shutil.rmtree(self._runtime)


def processes(cluster: Cluster, host: str, user: str, pattern: str = r"/\.agent/.*slurmbus_agent") -> list[int]:
    """Give a user's processes on a host whose command line has this; those of agents that 'up' has installed."""
    found = cluster.exec(host, ["pgrep", "-u", user, "-f", pattern], check=False).stdout
    return [int(line) for line in found.split()]


def ssh_processes(words: Sequence[str] = ()) -> list[int]:
    """Give this machine's processes of OpenSSH's client whose command lines have all of these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        program = line.split(" ")[0].rpartition("/")[2]
        if program in {"ssh", "ssh:"} and all(word in line for word in words):
            found.append(int(path.parent.name))
    return sorted(found)
