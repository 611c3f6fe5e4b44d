"""Slurmbus' agents on the login nodes of a cluster: the wheels, the configuration and the processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from .cluster import Cluster
from .errors import ClusterError
from .host import HostProcess

AGENT = "/opt/slurmbus/bin/slurmbus-agent"
PROJECT = Path(__file__).resolve().parents[2]
LOG_LINES = 400
STOP_PATIENCE = 20.0


def build_wheels(folder: Path, packages: tuple[str, ...] = ("protocol", "agent")) -> list[Path]:
    """Build the wheels of this checkout into a folder. Raises `ClusterError` with the builder's own words."""
    uv = shutil.which("uv") or str(PROJECT / ".uv" / "bin" / "uv")
    for package in packages:
        argv = [
            uv,
            "build",
            "--wheel",
            "--quiet",
            "--python",
            sys.executable,
            "--out-dir",
            str(folder),
            str(PROJECT / package),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"the wheel of {package} can't be built:\n{done.stderr}")
    return sorted(folder.glob("*.whl"))


def install_agent(cluster: Cluster) -> None:
    """Install this checkout's agent on every login node."""
    with tempfile.TemporaryDirectory() as folder:
        cluster.install_wheels(build_wheels(Path(folder)))


class AgentProcess:
    """An agent in the foreground of a login node, as an ordinary user.

    Args:
        cluster: with the agent installed, see `install_agent`.
        site: its name.
        bundle: the configuration that `slurmbus sites add` wrote.
        user: who runs it.
        host: on which login node.
        command: what starts it, before its own arguments.
        env: further environment.
        log_file: where everything that it says is added to, over all of its starts.
    """

    def __init__(
        self,
        cluster: Cluster,
        site: str,
        bundle: Path,
        *,
        user: str = "alice",
        host: str = "login",
        command: Sequence[str] = (AGENT,),
        env: Mapping[str, str] | None = None,
        log_file: Path | None = None,
    ) -> None:
        self.cluster = cluster
        self.site = site
        self.user = user
        self.host = host
        self._bundle = bundle
        self._command = tuple(command)
        self._env = dict(env or {})
        self._log_file = log_file
        self._process: HostProcess | None = None
        self._reader: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=LOG_LINES)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """The end of what the agent said."""
        return "\n".join(self._lines)

    @property
    def process(self) -> HostProcess:
        """The running process. Raises `ClusterError` when there is none."""
        if self._process is None:
            raise ClusterError(f"the agent of {self.site} isn't running")
        return self._process

    def start(self) -> None:
        """Put the configuration where the agent looks for it, and start it; it comes up by itself."""
        config = f"/home/{self.user}/.config/slurmbus/{self.site}.toml"
        self.cluster.exec(self.host, ["mkdir", "-p", str(PurePosixPath(config).parent)], user=self.user)
        self.cluster.copy_to(self.host, self._bundle, config, owner=self.user, mode=0o600)
        self._process = self.cluster.popen(
            self.host,
            [*self._command, "run", "--site", self.site],
            user=self.user,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=None,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: HostProcess) -> None:
        if process.stderr is not None:
            with process.stderr:
                for line in process.stderr:
                    self._keep(line.decode(errors="replace").rstrip())

    def _keep(self, line: str) -> None:
        self._lines.append(line)
        if self._log_file is not None:
            with self._log_file.open("a") as file:
                file.write(f"{line}\n")

    def _ended(self, process: HostProcess) -> None:
        process.wait(timeout=STOP_PATIENCE)
        if self._reader is not None:
            self._reader.join()

    def stop(self) -> None:
        """Ask the agent to stop, and wait until it has."""
        if self._process is not None:
            process, self._process = self._process, None
            process.terminate()
            self._ended(process)

    def kill(self) -> None:
        """Kill the agent as a crash would."""
        process = self.process
        self._process = None
        process.kill()
        self._ended(process)
