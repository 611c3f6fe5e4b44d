"""The one connection to a site: an OpenSSH master of our own, over which everything else goes.

The user's ``~/.ssh/config``, agent, FIDO keys, certificates, Kerberos tickets and jump hosts work as they do by hand,
since it is the user's own ``ssh`` that logs in; its prompts come on the user's terminal. Source: ssh(1), ssh_config(5).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from slurmbus.bootstrap.login import Login
from slurmbus.errors import LoginFailed
from slurmbus_protocol.errors import InvalidSetting

CONTROL_PATIENCE = 20.0
"""Seconds for a question to a master of this machine."""
ALIVE_INTERVAL, ALIVE_COUNT = 15, 4
"""A connection that has been silent for a minute is given up: a laptop that slept longer logs in again."""
_TAIL = 12
_OUTLIVING = ("/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh")
"""The master leaves the terminal, but the process that goes through a jump host for it doesn't: without this, closing
the window would end the connection."""
_LONGEST_SOCKET = 85
"""Bytes of the socket's path: 107 less what ssh adds while it makes it. Source: unix(7)."""


class Reason(NamedTuple):
    """Why a login failed, by what ``ssh`` said, and what to do."""

    pattern: str
    words: str
    hint: str


REASONS = (
    Reason(
        r"the secrets file has no answer for",
        "somebody asked for what isn't in secrets_file",
        "another host than the login node has names of its own there, such as SLURMBUS_SSH_PASSWORD__GATE_EXAMPLE_ORG",
    ),
    Reason(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|[Hh]ost key verification failed",
        "the host's key isn't the one that is known",
        "compare it with what the site publishes; 'ssh-keygen -R HOST' forgets an old one, and "
        "--ssh-option StrictHostKeyChecking=accept-new takes a new host's key without asking",
    ),
    Reason(
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "the site refused the login",
        "the right user, key, password or certificate? is the key's agent there (ssh-add -l)? "
        "'ssh -v {destination}' by hand says more",
    ),
    Reason(r"Could not resolve hostname", "the name isn't known", "is it spelt right? is a VPN needed?"),
    Reason(r"Connection refused", "nobody listens there", "is it the right host and port?"),
    Reason(
        r"timed out|No route to host|Network is unreachable",
        "it can't be reached",
        "is a VPN or a jump host needed (--jump)?",
    ),
    Reason(
        r"Connection (closed|reset) by|kex_exchange_identification",
        "the site closed the connection",
        "too many logins at once, a blocked address, or logins from some networks only; wait, then try by hand",
    ),
    Reason(r"Bad configuration option|unsupported option|keyword .* extra arguments", "ssh doesn't know an option", ""),
)


def run_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Give a folder for sockets with a short path that only this user can open; make it where it is missing.

    Raises:
        InvalidSetting: somebody else has made it.
    """
    env = os.environ if environ is None else environ
    runtime = env.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "slurmbus" if runtime else Path(tempfile.gettempdir()) / f"slurmbus-{os.getuid()}"
    if len(str(folder)) + 20 > _LONGEST_SOCKET:
        folder = Path("/tmp") / f"slurmbus-{os.getuid()}"  # noqa: S108 - looked at below
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InvalidSetting(f"{folder} isn't a folder of yours alone", hint=f"remove it, or chmod 700 {folder}")
    return folder


def control_path(home: Path, site: str) -> Path:
    """Give the socket of the master of a site of a home."""
    word = hashlib.sha256(f"{home}\0{site}".encode()).hexdigest()[:12]
    return run_folder() / f"{word}.ssh"


def base_command(login: Login) -> list[str]:
    """Give the beginning of every ``ssh`` command: program and configuration."""
    program = os.environ.get("SLURMBUS_SSH", "ssh")
    return [program, *(("-F", login.ssh_config) if login.ssh_config else ())]


def _way(login: Login) -> list[str]:
    """Give where to, through which hosts."""
    return [
        *(("-p", str(login.port)) if login.port else ()),
        *(("-J", ",".join(login.jump)) if login.jump else ()),
        "--",
        login.destination,
    ]


def resolved(login: Login) -> dict[str, str]:
    """Give what ``ssh`` makes of a login and of the person's own settings, by their names in small letters.

    Raises:
        LoginFailed: it doesn't understand them.
    """
    options = [word for option in login.ssh_options for word in ("-o", option)]
    done = subprocess.run(
        [*base_command(login), "-G", *options, *_way(login)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise explain(done.stderr, login)
    return {name: value for name, _, value in (line.partition(" ") for line in done.stdout.splitlines())}


def version() -> tuple[int, int]:
    """Give OpenSSH's version; (0, 0) when it doesn't say."""
    said = subprocess.run([os.environ.get("SLURMBUS_SSH", "ssh"), "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said.stderr)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def master_command(login: Login, socket: Path, log: Path, *, batch: bool = False) -> list[str]:
    """Give the command that logs in and goes into the background as a master.

    Args:
        login: where and how.
        socket: the master's.
        log: where it writes what is wrong.
        batch: fail rather than ask anybody.
    """
    options = [
        "ControlMaster=yes",
        f"ControlPath={socket}",
        "ControlPersist=no",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        "RequestTTY=no",
        f"ServerAliveInterval={ALIVE_INTERVAL}",
        f"ServerAliveCountMax={ALIVE_COUNT}",
        *(("BatchMode=yes",) if batch else ()),
        *login.ssh_options,
    ]
    return [
        *base_command(login),
        *("-N", "-f", "-E", str(log)),
        *(word for option in options for word in ("-o", option)),
        *_way(login),
    ]


def session_command(login: Login, socket: Path, command: str | None, *, terminal: bool = False) -> list[str]:
    """Give the command that opens a session over the master; without ``command`` it is a login shell on a terminal."""
    terminal = terminal or command is None
    return [
        *base_command(login),
        *("-S", str(socket), "-o", "ControlMaster=no", "-o", "RemoteCommand=none", "-o", "LogLevel=ERROR"),
        *("-o", "BatchMode=yes", "-o", "ProxyCommand=false"),  # only ever over the master
        *(("-tt", "-e", "none") if terminal else ("-T",)),
        "--",
        login.destination,
        *((command,) if command is not None else ()),
    ]


def control_command(login: Login, socket: Path, order: str, *arguments: str) -> list[str]:
    """Give the command that tells the master something: check, forward, cancel, exit."""
    return [*base_command(login), "-S", str(socket), "-O", order, *arguments, "--", login.destination]


def explain(said: str, login: Login) -> LoginFailed:
    """Turn what ``ssh`` said into what went wrong and what to do."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    for reason in REASONS:
        if re.search(reason.pattern, said):
            words = next((line for line in reversed(lines) if re.search(reason.pattern, line)), "")
            hint = reason.hint.format(destination=login.destination)
            return LoginFailed(f"no login at {login.destination}: {reason.words} ({words})", hint=hint)
    tail = "; ".join(lines[-_TAIL:]) or "ssh didn't say why"
    return LoginFailed(
        f"no login at {login.destination}: {tail}", hint=f"try 'ssh -v {login.destination}' by hand: it says more"
    )


class Master:
    """The connection to a site.

    Args:
        login: where and how.
        socket: its control socket.
        log: what ssh says.
    """

    def __init__(self, login: Login, socket: Path, log: Path) -> None:
        self.login = login
        self.socket = socket
        self.log = log
        self.opened = False
        """Whether it was opened here; then no tunnel goes over it yet."""

    @property
    def alive(self) -> bool:
        """Whether it is there; this asks the process of this machine, not the site."""
        if not self.socket.exists():
            return False
        return self._tell("check").returncode == 0

    def open(self, environment: Mapping[str, str] | None = None, *, batch: bool = False) -> None:
        """Log in; prompts are shown on the terminal. Returns when the connection stands.

        Args:
            environment: added for ``ssh``: the askpass program and what that needs.
            batch: fail rather than ask.

        Raises:
            LoginFailed: with what ssh said and what to do.
        """
        if shutil.which(base_command(self.login)[0]) is None:
            raise LoginFailed("there is no ssh on this machine", hint="install OpenSSH's client")
        self.socket.unlink(missing_ok=True)
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log.write_text("")
        at_terminal = sys.stderr.isatty()  # e.g. "touch your key"; elsewhere the master would keep a pipe open
        with self.log.open("ab") as log:
            done = subprocess.run(
                [*_OUTLIVING, *master_command(self.login, self.socket, self.log, batch=batch)],
                env={**os.environ, **(environment or {})},
                stdin=None if sys.stdin.isatty() else subprocess.DEVNULL,
                stdout=log,
                stderr=None if at_terminal else log,
                check=False,
            )
        if done.returncode != 0:
            self.socket.unlink(missing_ok=True)
            raise explain(self.log.read_text(errors="replace"), self.login)
        self.opened = True

    def session(self, command: str | None, *, terminal: bool) -> subprocess.Popen[bytes]:
        """Open a session over it; a login shell on a terminal without ``command``."""
        return subprocess.Popen(
            session_command(self.login, self.socket, command, terminal=terminal),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: the helper tidies up when its input ends
        )

    def forward(self, remote: str, target: str) -> int | None:
        """Let connections to ``remote`` at the site come out here, at ``target``.

        Args:
            remote: the path of a Unix socket, or ``address:port`` (port 0: the site chooses).
            target: ``host:port`` as seen from here.

        Returns:
            The port that the site chose, if it was asked to.

        Raises:
            LoginFailed: the site doesn't allow it.
        """
        done = self._tell("forward", "-R", f"{remote}:{target}")
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise LoginFailed(f"the site allows no forwarding of {remote}: {words[-1] if words else 'it was refused'}")
        chosen = re.search(r"\d+", done.stdout)
        return int(chosen.group()) if chosen else None

    def close(self) -> None:
        """End the connection, with everything that goes over it."""
        if self.socket.exists():
            self._tell("exit")
            self.socket.unlink(missing_ok=True)

    def _tell(self, order: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            control_command(self.login, self.socket, order, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CONTROL_PATIENCE,
            check=False,
        )
