"""How a person gets into a site: the ``[login]`` table of its profile."""

from __future__ import annotations

import getpass
import shlex
from typing import Any, Literal, get_args

import msgspec

from slurmbus_protocol.errors import InvalidSetting

Way = Literal["auto", "direct", "websocket", "tunnel"]
"""How the agent reaches the bus."""
SupervisorKind = Literal["auto", "systemd", "scrontab", "cron", "detached"]
WAYS: tuple[str, ...] = get_args(Way)
SUPERVISORS: tuple[str, ...] = get_args(SupervisorKind)
COMMAND = "{command}"
"""Where a ``post_login_command`` takes the command that it shall run."""


class Login(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The settings of ``slurmbus up``. What isn't set is as ``ssh`` has it: in the user's own ``~/.ssh/config``."""

    host: str
    """A name of the login node, or an alias of ``~/.ssh/config``."""
    user: str | None = None
    port: int | None = None
    jump: tuple[str, ...] = ()
    """Hosts to go through, the first one first: ``[user@]host[:port]``."""
    ssh_options: tuple[str, ...] = ()
    """``Name=value`` each, as for ``ssh -o``."""
    ssh_config: str | None = None
    """Another file in the place of ``~/.ssh/config``."""
    post_login_command: str | None = None
    """Run on the login node first, e.g. one that goes on to another node. With ``{command}`` it is given the command
    that is to be run, as one quoted word; without, it is typed into the login shell, and what follows goes to whatever
    it has become."""
    force_tty: bool = False
    before_login: str | None = None
    """A command of this machine that is run before, e.g. one that fetches a certificate."""
    secrets_file: str | None = None
    """A file of SOPS (JSON, YAML, dotenv) or age (dotenv) with what answers the prompts: see ``bootstrap.prompts``."""
    askpass: str | None = None
    """A program that is called with each prompt and prints the answer; then nobody is asked."""
    way: Way = "auto"
    supervisor: SupervisorKind = "auto"
    tunnel_relogin: bool = False
    """Log in again by itself when the tunnel has died: only for logins that need nobody's answer."""
    install_folder: str | None = None
    """On the site; ``~/.slurmbus/.agent``, unless programs can't be started from there."""
    agent_python: str | None = None
    """The Python on the site (3.11 or newer) on which the agent runs."""
    python_archive: str | None = None
    """A Python for the site as an archive of this machine (python-build-standalone, ``install_only``)."""
    pyslurm: bool | None = None
    """Compile pyslurm on the site where it fits the site's Slurm; that takes minutes of the login node's CPU, so nobody
    does it unasked, and ``up`` says where it could be done."""

    @property
    def destination(self) -> str:
        """What ``ssh`` is told."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def check(self) -> None:
        """See whether ``ssh`` could take something for an option, or a program can't be split into words.

        Raises:
            InvalidSetting: a setting can't be used; the message names it.
        """
        for name, word in (("host", self.host), ("user", self.user or ""), *(("jump", jump) for jump in self.jump)):
            if word.startswith("-") or any(letter.isspace() for letter in word):
                raise InvalidSetting(f"{name}={word!r} is no name")
        if not self.host:
            raise InvalidSetting("host is empty", hint="name the login node with --host")
        for option in self.ssh_options:
            if "=" not in option:
                raise InvalidSetting(f"ssh_options: {option!r} is no option of ssh", hint="write it as Name=value")
        for name in ("before_login", "askpass"):
            words(name, getattr(self, name))
        if self.tunnel_relogin and self.way not in {"auto", "tunnel"}:
            raise InvalidSetting("tunnel_relogin is for the way 'tunnel'")


def words(name: str, command: str | None) -> list[str]:
    """Split a command into words, as a shell would; InvalidSetting when that can't be done."""
    try:
        return shlex.split(command or "")
    except ValueError as error:
        raise InvalidSetting(f"{name} can't be split into words: {error}") from error


def merged(kept: Login | None, given: dict[str, Any]) -> Login:
    """Put what was said now over what is kept; what is None or empty wasn't said.

    Raises:
        InvalidSetting: there is no host, or a setting can't be used.
    """
    said = {name: value for name, value in given.items() if value not in (None, ())}
    before = msgspec.structs.asdict(kept) if kept is not None else {}
    if "host" not in before | said:
        raise InvalidSetting("it isn't known where the site is", hint="name its login node with --host")
    try:
        login = msgspec.convert(before | said, Login)
    except msgspec.ValidationError as error:
        raise InvalidSetting(f"the settings of the login: {error}") from error
    login.check()
    return login


def default_user() -> str:
    """Give this machine's user, which is a good guess."""
    return getpass.getuser()
