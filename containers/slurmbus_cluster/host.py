"""One host of the cluster: a container, and what can be done in it and to it."""

from __future__ import annotations

import io
import os
import posixpath
import subprocess
import tarfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import docker.errors
from docker.models.containers import Container
from docker.models.networks import Network
from testcontainers.core.container import DockerContainer

from .errors import CommandFailed, ConditionTimeout, HostFailed

READY_TIMEOUT = 60.0
"""Seconds for a host's daemons to serve; they take two to four on an idle machine."""

COMMAND_TIMEOUT = 120.0
"""Seconds for a command in a host, unless the caller says otherwise."""

USER_IDS = {"root": 0, "alice": 1001, "bob": 1002}
"""The users of the image, for files that are put into a host."""


@dataclass(frozen=True)
class Result:
    """What a command in a host left: exit code and output (undecodable bytes as surrogates, so nothing is lost)."""

    exit_code: int
    stdout: str
    stderr: str


class HostProcess(subprocess.Popen[bytes]):
    """A program in a host, followed from here: standard streams are this process's pipes, signals go to the program.

    Its exit code is the program's; 128 plus the number when a signal ended it.
    """

    def __init__(
        self,
        host: Host,
        argv: Sequence[str],
        *,
        user: str,
        env: Mapping[str, str] | None,
        workdir: str | None,
        stdin: int | IO[bytes] | None,
        stdout: int | IO[bytes] | None,
        stderr: int | IO[bytes] | None,
    ) -> None:
        self._host = host
        self._pid_file = f"/tmp/.slurmbus-{uuid.uuid4().hex}.pid"
        wrapper = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', self._pid_file, *argv]
        super().__init__(
            host.exec_command(wrapper, user=user, env=env, workdir=workdir), stdin=stdin, stdout=stdout, stderr=stderr
        )

    @property
    def host_pid(self) -> int:
        """The program's process id in its host."""
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            text = self._host.exec(["cat", self._pid_file], check=False).stdout
            if text.strip():
                return int(text)
            if self.poll() is not None:
                raise HostFailed(f"the program on {self._host.name} ended with {self.returncode} before it ran")
            time.sleep(0.05)
        raise ConditionTimeout(f"the program on {self._host.name} didn't start within {READY_TIMEOUT:.0f} s")

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program in its host; nothing happens when it has ended."""
        if self.poll() is None:
            self._host.exec(["kill", f"-{int(sig)}", str(self.host_pid)], check=False)


class Host:
    """One host of the cluster, made by `Cluster`, through which its methods are also reached by the host's name."""

    def __init__(self, name: str, address: str, network: Network, container: DockerContainer) -> None:
        self.name = name
        self.address = address
        self._network = network
        self._definition = container
        self._ready_before = 0
        self._failed_before = 0

    @property
    def container(self) -> Container:
        """The container as docker-py's object."""
        return self._definition.get_wrapped_container()

    def create(self) -> None:
        """Create the container and start it for the first time."""
        self._definition.start()

    def start(self) -> None:
        """Start the container again after it was killed. Its daemons start with it; `wait_ready` waits for them."""
        self._ready_before, self._failed_before = self._count("ready"), self._count("failed")
        self.container.start()

    def kill(self) -> None:
        """Kill the container with everything in it, like a power cut."""
        self.container.kill()

    def pause(self) -> None:
        """Freeze every process of the host."""
        self.container.pause()

    def unpause(self) -> None:
        """Let a frozen host run again."""
        self.container.unpause()

    def disconnect(self) -> None:
        """Pull the network plug."""
        self._network.disconnect(self.container, force=True)

    def connect(self) -> None:
        """Put the network plug back in, at the same address."""
        self._network.connect(self.container, ipv4_address=self.address, aliases=[self.name])

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until the daemons of this host serve. Raises `HostFailed` with the failing daemon's log."""
        deadline = time.monotonic() + timeout
        while True:
            if self._count("ready") > self._ready_before:
                return
            if self._count("failed") > self._failed_before:
                raise HostFailed(f"{self.name} didn't come up:\n{self.logs()}")
            self.container.reload()
            if self.container.status != "running":
                raise HostFailed(f"{self.name} is {self.container.status}:\n{self.logs()}")
            if time.monotonic() > deadline:
                raise HostFailed(f"{self.name} wasn't ready within {timeout:.0f} s:\n{self.logs()}")
            time.sleep(0.05)

    def _count(self, word: str) -> int:
        """Count the start-ups that ended with this word; a restarted container's output goes on where it was."""
        lines = self.container.logs().decode(errors="replace").splitlines()
        return sum(line.startswith("slurmbus-host: ") and line.endswith(word) for line in lines)

    def logs(self, tail: int = 60) -> str:
        """Return what the host printed and the last lines of each of its daemons' logs."""
        printed = self.container.logs(tail=tail).decode(errors="replace")
        self.container.reload()
        if self.container.status != "running":
            return printed
        daemons = self.exec(["sh", "-c", f"tail -n {tail} /var/log/slurm/*.log"], check=False).stdout
        return f"{printed}\n{daemons}"

    def exec_command(
        self, argv: Sequence[str], *, user: str, env: Mapping[str, str] | None, workdir: str | None
    ) -> list[str]:
        """Return the command on this machine that runs `argv` in the host."""
        command = ["docker", "exec", "--interactive", "--user", user]
        for key, value in (env or {}).items():
            command += ["--env", f"{key}={value}"]
        if workdir is not None:
            command += ["--workdir", workdir]
        return [*command, str(self.container.id), *argv]

    def exec(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        check: bool = True,
        stdin: bytes | str | None = None,
        timeout: float = COMMAND_TIMEOUT,
    ) -> Result:
        """Run a command in the host and wait for its end. Raises `CommandFailed` when `check` and its code isn't 0."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        command = self.exec_command(argv, user=user, env=env, workdir=workdir)
        try:
            done = subprocess.run(command, input=given or b"", capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise ConditionTimeout(f"{' '.join(argv)} on {self.name} took longer than {timeout:.0f} s") from error
        result = Result(
            done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="surrogateescape")
        )
        if check and result.exit_code != 0:
            raise CommandFailed(self.name, argv, result.exit_code, result.stdout, result.stderr)
        return result

    def popen(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        stdin: int | IO[bytes] | None = subprocess.PIPE,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
    ) -> HostProcess:
        """Start a program in the host and return at once; see `HostProcess`."""
        return HostProcess(self, argv, user=user, env=env, workdir=workdir, stdin=stdin, stdout=stdout, stderr=stderr)

    def copy_to(
        self, content: bytes | str | os.PathLike[str], dest: str, owner: str = "root", mode: int = 0o644
    ) -> None:
        """Write a file into the host: `content` is its bytes, or the path of a file here.

        Folders that are missing are made for root, as a copy by an administrator would.
        """
        data = content if isinstance(content, bytes) else Path(content).read_bytes()
        folder, name = posixpath.split(dest)
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        entry.mode = mode
        entry.mtime = int(time.time())
        entry.uid = entry.gid = USER_IDS[owner] if owner in USER_IDS else int(self.exec(["id", "-u", owner]).stdout)
        self._unpack(folder or "/", [(entry, data)])

    def copy_files(self, files: Mapping[str, bytes], folder: str) -> None:
        """Write several files of root into a folder of the host in one go; the folder is made when it is missing."""
        entries = []
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o644
            entries.append((entry, data))
        self._unpack(folder, entries)

    def _unpack(self, folder: str, entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for entry, data in entries:
                tar.addfile(entry, io.BytesIO(data))
        try:
            self.container.put_archive(folder, packed.getvalue())
        except docker.errors.NotFound:
            self.exec(["mkdir", "-p", folder])
            self.container.put_archive(folder, packed.getvalue())
