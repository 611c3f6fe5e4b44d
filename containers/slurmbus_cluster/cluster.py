"""A real Slurm cluster in containers, started and removed by a `with` statement."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import docker
import docker.errors
from docker import version as docker_version
from docker.models.networks import Network
from docker.types import EndpointConfig, IPAMConfig, IPAMPool
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network as NetworkDefinition

from . import engine, leftovers, slurm
from .errors import ClusterError, ConditionTimeout
from .host import COMMAND_TIMEOUT, READY_TIMEOUT, Host, HostProcess, Result
from .image import DEFAULT_RELEASE, ensure_image

DEFAULT_HOSTS = ("ctld", "c1", "c2", "login")
SUBNET_ATTEMPTS = 5
"""Times to ask for a network: another process may take the same range between the question and the answer."""

Action = Literal["start", "stop", "restart", "kill", "freeze", "thaw", "status", "log"]
DAEMON_HOSTS = {"slurmctld": "ctld", "slurmdbd": "ctld", "mariadbd": "ctld"}


class Cluster:
    """A Slurm cluster of several hosts on a network of their own, with a shared `/home`.

    Hosts are `ctld` (slurmctld, slurmdbd, database), `c1` and `c2` (slurmd), `login` and as many further login nodes
    (`login2`, …) and jump hosts (`jump`, …: sshd only) as are named. The users of `slurm/conf/users` have the same ids
    everywhere.

    Use it as a context manager. Whatever ends the block, also an interrupt while it starts, everything is removed; what
    a killed process left is removed by the next one that starts a cluster here.

    Args:
        progress: takes one line of text per step.
        hosts: names of the hosts to start.
        labels: further labels of the containers.
        env: further environment of every host; see `slurm/bin/slurmbus-host` for what it understands.
        ssh_key: public key (a line) with which users may log in by SSH on login nodes and jump hosts.
        release: which Debian, and so which Slurm, the hosts have: a key of `image.RELEASES`.
        shared: further file systems that all hosts share, in memory: folder to size, e.g. ``{"/scratch": "64m"}``.
            Everybody may write to them, and they can be filled.
    """

    def __init__(
        self,
        progress: Callable[[str], None] = print,
        hosts: Sequence[str] = DEFAULT_HOSTS,
        *,
        labels: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        ssh_key: str | None = None,
        release: str = DEFAULT_RELEASE,
        shared: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"slurmbus-{uuid.uuid4().hex[:8]}"
        self._progress = progress
        self._host_names = tuple(hosts)
        self._labels = {**(labels or {}), leftovers.CLUSTER_LABEL: self.name, **engine.owner_labels()}
        self._env = {**(env or {}), **({"SLURMBUS_SSH_KEY": ssh_key} if ssh_key else {})}
        self.release = release
        self._shared = dict(shared or {})
        self._hosts: dict[str, Host] = {}
        self._client: docker.DockerClient | None = None
        self._gateway = ""

    # Start and end

    def __enter__(self) -> Self:
        image = ensure_image(self._progress, self.release)
        started = time.monotonic()
        self._client = engine.connect()
        try:
            leftovers.remove_abandoned(self._client, self._progress)
            self._progress(f"starting cluster {self.name}: {', '.join(self._host_names)}")
            self._client.volumes.create(f"{self.name}-home", labels=self._labels)
            for folder, size in self._shared.items():
                options = {"type": "tmpfs", "device": "tmpfs", "o": f"size={size},mode=1777"}
                self._client.volumes.create(self._volume(folder), driver_opts=options, labels=self._labels)
            network, subnet = self._make_network(self._client)
            addresses = {name: str(subnet[_host_number(name)]) for name in self._host_names}
            self._hosts = {
                name: Host(name, address, network, self._define(image, name, network, addresses))
                for name, address in addresses.items()
            }
            self._each(self._hosts.values(), Host.create)
            for host in self._hosts.values():
                host.wait_ready()
            self.wait_idle()
        except BaseException:
            self.close()
            raise
        self._progress(f"cluster {self.name} is ready after {time.monotonic() - started:.1f} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything. A second call does nothing."""
        if self._client is not None:
            client, self._client = self._client, None
            leftovers.remove_cluster(client, self.name)
            client.close()
        self._hosts = {}

    def _make_network(self, client: docker.DockerClient) -> tuple[Network, ipaddress.IPv4Network]:
        """Make the network with an explicit range: only then may hosts keep their addresses when they restart.

        The engine is asked for a free range by letting it choose one for a network that is removed at once.
        """
        for attempt in range(SUBNET_ATTEMPTS):
            probe = client.networks.create(f"{self.name}-probe", labels=self._labels)
            probe.reload()
            subnet = ipaddress.IPv4Network(probe.attrs["IPAM"]["Config"][0]["Subnet"])
            probe.remove()
            self._gateway = str(subnet[1])
            pool = IPAMPool(subnet=str(subnet), gateway=self._gateway)
            definition = NetworkDefinition(
                docker_network_kw={"ipam": IPAMConfig(pool_configs=[pool]), "labels": self._labels}
            )
            definition.name = self.name
            try:
                definition.create()
            except docker.errors.APIError as error:
                if attempt + 1 == SUBNET_ATTEMPTS or "overlap" not in str(error):
                    raise
                continue
            return client.networks.get(self.name), subnet
        raise AssertionError

    def _volume(self, folder: str) -> str:
        return f"{self.name}{folder.replace('/', '-')}"

    def _define(self, image: str, name: str, network: Network, addresses: Mapping[str, str]) -> DockerContainer:
        endpoint = EndpointConfig(docker_version.__version__, aliases=[name], ipv4_address=addresses[name])
        container = DockerContainer(image)
        for folder in self._shared:
            container = container.with_volume_mapping(self._volume(folder), folder, "rw")
        return (
            container.with_name(f"{self.name}-{name}")
            .with_envs(**self._env)
            .with_volume_mapping(f"{self.name}-home", "/home", "rw")
            .with_kwargs(
                hostname=name,
                network=network.name,
                networking_config={str(network.name): endpoint},
                # Names don't depend on a name server, so that a dead host's name still resolves at once.
                extra_hosts=dict(addresses),
                # slurmd limits jobs by cgroups; each host sees its own part of the hierarchy only. Some of these
                # rights are for tests: small file systems, cut networks. Not `privileged`: it wants every right of
                # the engine's host, of which a virtual machine may lack some.
                cgroupns="private",
                cap_add=["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_NICE"],
                security_opt=["seccomp=unconfined", "apparmor=unconfined"],
                labels=self._labels,
            )
        )

    @staticmethod
    def _each(hosts: Iterable[Host], action: Callable[[Host], None]) -> None:
        """Do the same to several hosts at once; the first failure is raised when all are done."""
        targets = list(hosts)
        with ThreadPoolExecutor(max(1, len(targets))) as pool:
            list(pool.map(action, targets))

    # Hosts

    def host(self, name: str) -> Host:
        """Return the host of this name."""
        try:
            return self._hosts[name]
        except KeyError:
            raise ClusterError(
                f"no host {name}; there are {', '.join(self._hosts) or 'none, the cluster is closed'}"
            ) from None

    @property
    def hosts(self) -> Mapping[str, Host]:
        """All hosts by name."""
        return self._hosts

    @property
    def gateway(self) -> str:
        """The address by which hosts reach services of the machine that runs the engine."""
        return self._gateway

    def ip(self, host: str) -> str:
        """Return the address of a host."""
        return self.host(host).address

    def exec(
        self,
        host: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        check: bool = True,
        stdin: bytes | str | None = None,
        timeout: float = COMMAND_TIMEOUT,
    ) -> Result:
        """Run a command in a host and wait for its end; see `Host.exec`."""
        return self.host(host).exec(
            argv, user=user, env=env, workdir=workdir, check=check, stdin=stdin, timeout=timeout
        )

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        stdin: int | IO[bytes] | None = subprocess.PIPE,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
    ) -> HostProcess:
        """Start a program in a host, to be followed and signalled from here; see `HostProcess`."""
        return self.host(host).popen(
            argv, user=user, env=env, workdir=workdir, stdin=stdin, stdout=stdout, stderr=stderr
        )

    def copy_to(
        self, host: str, content: bytes | str | os.PathLike[str], dest: str, owner: str = "root", mode: int = 0o644
    ) -> None:
        """Write a file into a host; see `Host.copy_to`."""
        self.host(host).copy_to(content, dest, owner, mode)

    def logs(self, host: str) -> str:
        """Return what a host printed and the ends of its daemons' logs."""
        return self.host(host).logs()

    def kill_host(self, host: str) -> None:
        """Kill a host with everything in it, like a power cut."""
        self.host(host).kill()

    def start_host(self, host: str, timeout: float = READY_TIMEOUT) -> None:
        """Start a killed host and wait until its daemons serve."""
        self.host(host).start()
        self.host(host).wait_ready(timeout)

    def pause(self, host: str) -> None:
        """Freeze every process of a host."""
        self.host(host).pause()

    def unpause(self, host: str) -> None:
        """Let a frozen host run again."""
        self.host(host).unpause()

    def disconnect(self, host: str) -> None:
        """Pull a host's network plug."""
        self.host(host).disconnect()

    def connect(self, host: str) -> None:
        """Put a host's network plug back in, at the same address."""
        self.host(host).connect()

    def daemon(self, action: Action, name: str, host: str | None = None) -> str:
        """Start, stop, restart, kill, freeze or thaw a daemon, or return its status or its log.

        Each waits until it is done: after `start` the daemon serves, after `kill` it is gone. `host` may be left out
        for the daemons that run on `ctld` only. Raises `CommandFailed` with the end of the daemon's log.
        """
        where = host or DAEMON_HOSTS.get(name)
        if where is None:
            raise ClusterError(f"{name} runs on several hosts: say which (host=…)")
        return self.host(where).exec(["slurmbus-daemon", action, name]).stdout

    def install_wheels(self, paths: Iterable[str | os.PathLike[str]], hosts: Sequence[str] | None = None) -> None:
        """Install wheels, without their dependencies and without a network, into `/opt/slurmbus` of the login nodes."""
        files = {Path(path).name: Path(path).read_bytes() for path in paths}
        folder = "/opt/wheels"

        def install(host: Host) -> None:
            host.exec(["rm", "-rf", folder])
            host.copy_files(files, folder)
            host.exec(["/opt/slurmbus/bin/pip", *_PIP_OFFLINE, *(f"{folder}/{name}" for name in files)])

        targets = hosts if hosts is not None else [name for name in self._hosts if name.startswith("login")]
        self._each([self.host(name) for name in targets], install)

    # Slurm

    def job(self, job_id: int | str) -> dict[str, object]:
        """Return what the controller knows of a job (`scontrol show job --json`). Raises `CommandFailed` for none."""
        return slurm.job(self.host("ctld"), job_id)

    def accounting(self, job_id: int | str) -> list[dict[str, str]]:
        """Return accounting's rows of a job and its steps (`sacct`), fields by name; see `slurm.SACCT_FIELDS`."""
        return slurm.accounting(self.host("ctld"), job_id)

    def wait_job(self, job_id: int | str, states: Iterable[str], timeout: float = COMMAND_TIMEOUT) -> str:
        """Wait until the controller shows a job in one of these states and return it."""
        return slurm.wait_job(self.host("ctld"), job_id, states, timeout)

    def wait_idle(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until every compute node is idle: up, and with nothing running on it."""
        nodes = [name for name in self._host_names if slurm.COMPUTE.fullmatch(name)]
        try:
            slurm.wait_nodes(self.host("ctld"), nodes, "idle", timeout)
        except ConditionTimeout as error:
            logs = "\n".join(f"== {name}\n{self.host(name).logs(20)}" for name in ("ctld", *nodes))
            raise ConditionTimeout(f"{error}\n{logs}") from error


_PIP_OFFLINE = (
    "install",
    "--quiet",
    "--no-deps",
    "--no-index",
    "--force-reinstall",
    "--disable-pip-version-check",
    "--root-user-action=ignore",
)


def _host_number(name: str) -> int:
    """Return a host's place in the network: fixed, so that every cluster looks the same in logs."""
    if name == "ctld":
        return 10
    kind = name.rstrip("0123456789")
    number = int(name[len(kind) :] or 1)
    base, most = {"c": (100, 2), "login": (200, 30), "jump": (230, 20)}.get(kind, (0, 0))
    if not 1 <= number <= most:
        raise ClusterError(f"no such host can be made: {name} (ctld, c1, c2, login, login2, …, jump, …)")
    return base + number
