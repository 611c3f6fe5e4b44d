"""Logging in on the cluster's hosts by OpenSSH, as each of its users does (containers/slurm/conf/users)."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from slurmbus_cluster import Cluster
from slurmbus_cluster.firewall import closed

KEYS = "/etc/ssh/slurmbus_keys"
SECRET = b"12345678901234567890"
"""Of dave's one-time codes (containers/slurm/bin/slurmbus-users)."""
TIMEOUT = 60.0

ASKPASS = """\
#!{python}
import pathlib, sys
answers = pathlib.Path({folder!r})
prompt = sys.argv[1]
with (answers / "asked").open("a") as log:
    log.write(prompt + "\\n")
if "One-time" in prompt:
    codes = (answers / "codes").read_text().split()
    (answers / "codes").write_text("\\n".join(codes[1:]))
    print(codes[0])
else:
    print((answers / "password").read_text())
"""


def one_time_code(counter: int) -> str:
    """Return dave's code of this number (RFC 4226)."""
    digest = hmac.digest(SECRET, counter.to_bytes(8, "big"), hashlib.sha1)
    offset = digest[-1] & 15
    return f"{(int.from_bytes(digest[offset : offset + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"


class Logins:
    """The ways into a cluster: the settings of OpenSSH for them, and what answers its prompts.

    Args:
        cluster: where to.
        folder: for the key, the settings and the answers.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        if shutil.which("ssh") is None:
            pytest.fail("OpenSSH's client isn't installed (Debian: openssh-client)")
        self.cluster = cluster
        self.folder = folder
        self.config = folder / "config"
        self._codes = itertools.count()
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        servers = [name for name in cluster.hosts if name.startswith(("login", "jump"))]
        for name in servers:
            cluster.copy_to(name, key.with_suffix(".pub"), KEYS)
        aliases = "\n".join(f"Host {name}\n    HostName {cluster.ip(name)}\n" for name in servers)
        # Login nodes behind one jump host, and behind two.
        behind = "".join(
            f"Host {name}\n    HostName {cluster.ip('login2')}\n    ProxyJump {jumps}\n\n"
            for name, jumps in (("behind-one", "jump"), ("behind-two", "jump,jump2"))
            if "login2" in cluster.hosts
        )
        self.config.write_text(
            f"{aliases}\n"
            f"{behind}"
            # OpenSSH takes the user of the last host for that one only.
            "Host jump*\n    User alice\n\n"
            "Host *\n"
            f"    IdentityFile {key}\n    IdentitiesOnly yes\n"
            # Each host's key is new with each cluster.
            f"    UserKnownHostsFile {folder / 'known_hosts'}\n    StrictHostKeyChecking accept-new\n"
            f"    ConnectTimeout 20\n    LogLevel ERROR\n    NumberOfPasswordPrompts 1\n"
        )

    def next_code(self) -> str:
        """Return the next of dave's codes; the login nodes count for themselves, and skip what they haven't seen."""
        return one_time_code(next(self._codes))

    def command(self, user: str, host: str, *remote: str, options: Sequence[str] = ()) -> list[str]:
        """Return the command line that runs a command there."""
        return ["ssh", "-F", str(self.config), *options, "-l", user, host, shlex.join(remote)]

    def run(
        self, user: str, host: str, *remote: str, options: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, with nobody to ask; undecodable bytes are replaced."""
        return subprocess.run(
            self.command(user, host, *remote, options=options),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )

    def askpass(self, password: str, codes: Sequence[str] = ()) -> dict[str, str]:
        """Return the environment in which OpenSSH asks a program, which gives these answers."""
        answers = Path(tempfile.mkdtemp(prefix="answers-", dir=self.folder))
        (answers / "password").write_text(password)
        (answers / "codes").write_text("\n".join(codes))
        program = answers / "askpass"
        program.write_text(ASKPASS.format(python=sys.executable, folder=str(answers)))
        program.chmod(0o700)
        return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"}

    def accepted(self, host: str, user: str) -> int:
        """Count the logins of a user that a host let in."""
        return len(
            re.findall(rf"^Accepted .* for {user} ", self.cluster.daemon("log", "sshd", host=host), re.MULTILINE)
        )

    @contextmanager
    def only_through(self, *jumps: str) -> Iterator[None]:
        """Let the second login node be reached through these jump hosts only, one after the other."""
        with ExitStack() as stack:
            for host, source in zip((*jumps[1:], "login2"), jumps, strict=True):
                stack.enter_context(closed(self.cluster, host, "22", but=(source,)))
            yield
