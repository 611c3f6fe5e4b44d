"""A team's own NATS server: who may connect, as data in a folder, and the configuration that is written from it.

Only public keys are kept in ``team.toml``, which is the data; ``nats.conf``, ``tls/`` and ``jetstream/`` are what
nats-server reads.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any, Self

import msgspec

from slurmbus_protocol.embedded import new_user_seed, public_key
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.private_files import write_private
from slurmbus_protocol.server_tls import ServerTls
from slurmbus_protocol.streams import BusLimits, agent_permissions
from slurmbus_protocol.subjects import check_token

_NKEY = re.compile(r"U[A-Z2-7]{55}")
_MIB = 1024**2


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Who may connect. An agent's name is its site's."""

    name: str
    nkey: str
    agent: bool = False


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """An account of the server: its users see each other's sites and jobs, and nobody else's."""

    name: str
    users: tuple[User, ...] = ()


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a shared server is made of."""

    host: str
    """The name by which members reach it; its certificate bears it."""
    admin: str
    """Public key of the system account's user."""
    listen: str = "0.0.0.0"  # noqa: S104 - a shared server is for other hosts
    port: int = 4222
    websocket: int | None = None
    certificate: str | None = None
    """Its own certificate with the chain, and the key; None lets Slurmbus make both."""
    key: str | None = None
    teams: tuple[Team, ...] = ()


class SharedBus:
    """The folder of a shared server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.configuration = self.folder / "nats.conf"
        self.pid_file = self.folder / "nats.pid"
        self._data = self.folder / "team.toml"
        self._keys = self.folder / "keys"
        self.settings: Settings | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read one that there is; InvalidSetting when there is none."""
        bus = cls(folder)
        try:
            bus.settings = msgspec.toml.decode(bus._data.read_bytes(), type=Settings)
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidSetting(
                f"{bus._data} can't be used: {error}", hint="make a shared server's folder with 'slurmbus bus init'"
            ) from error
        return bus

    def make(self, host: str, **changes: Any) -> None:
        """Make it, or change its settings; teams and users stay.

        Args:
            host: the name by which members reach it.
            changes: further fields of :class:`Settings`; those that are None stay as they are.

        Raises:
            InvalidSetting: the folder can't be written, or a setting can't be used.
        """
        if not host or not re.fullmatch(r"[A-Za-z0-9.:-]+", host):
            raise InvalidSetting(f"{host!r} is no name of a host")
        given = {name: value for name, value in changes.items() if value is not None}
        if ("certificate" in given) != ("key" in given):
            raise InvalidSetting("a certificate comes with its key", hint="give both --certificate and --key")
        try:
            self._keys.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            if self._data.exists():
                self.settings = msgspec.structs.replace(self.open(self.folder).settings_in_force, host=host, **given)
            else:
                self.settings = Settings(host=host, admin=self._new_key("admin"), **given)
        except OSError as error:
            raise InvalidSetting(f"{self.folder} can't be used: {error.strerror}") from error
        self.write()

    @property
    def settings_in_force(self) -> Settings:
        """Its settings; InvalidSetting when they haven't been read."""
        if self.settings is None:
            raise InvalidSetting(f"{self.folder} hasn't been read")
        return self.settings

    @property
    def authority(self) -> Path | None:
        """What members pin; None when the certificate isn't ours."""
        return None if self.settings_in_force.certificate else self.folder / "tls" / "ca.pem"

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses for members."""
        s = self.settings_in_force
        host = f"[{s.host}]" if ":" in s.host else s.host
        return (f"tls://{host}:{s.port}", *((f"wss://{host}:{s.websocket}",) if s.websocket else ()))

    # ------------------------------------------------------------------ teams and users

    def add_team(self, name: str) -> bool:
        """Add a team; False when it is there."""
        check_token(name, "team")
        if any(team.name == name for team in self.settings_in_force.teams):
            return False
        self._put(Team(name=name))
        return True

    def add_user(self, team: str, name: str, nkey: str | None = None, *, agent: bool = False) -> Path | None:
        """Let somebody in, or change their key.

        Args:
            team: whose account.
            name: of the user; of an agent its site's.
            nkey: the public key (``U…``); without one a key is made, and its seed's file given back to be handed over.
            agent: whether it gets the least that an agent needs instead of everything in the account.

        Raises:
            InvalidName: the name can't be one.
            InvalidSetting: there is no such team, the key is none, or somebody else's.
        """
        check_token(name, "site" if agent else "user")
        found = self._team(team)
        if nkey is None and agent:
            raise InvalidSetting(
                "an agent's key is made where its site is", hint=f"'slurmbus sites show {name}' there gives agent_nkey"
            )
        if nkey is not None and not _NKEY.fullmatch(nkey):
            raise InvalidSetting(
                f"{nkey!r} is no public key of a user", hint="it starts with U; never give a seed (S…)"
            )
        for other_team in self.settings_in_force.teams:
            for other in other_team.users:
                if other.nkey == nkey and (other_team.name, other.name, other.agent) != (team, name, agent):
                    raise InvalidSetting(f"this key is {other.name}'s of team {other_team.name}")
        made = None if nkey else self._keys / f"{team}.{name}.nkey"
        user = User(name=name, nkey=nkey or self._new_key(f"{team}.{name}"), agent=agent)
        others = tuple(other for other in found.users if (other.name, other.agent) != (name, agent))
        self._put(Team(name=team, users=(*others, user)))
        return made

    def remove_user(self, team: str, name: str) -> bool:
        """Let somebody in no more, user and agent of that name; False when there is none."""
        found = self._team(team)
        left = tuple(user for user in found.users if user.name != name)
        if len(left) == len(found.users):
            return False
        self._put(Team(name=team, users=left))
        (self._keys / f"{team}.{name}.nkey").unlink(missing_ok=True)
        return True

    def _team(self, name: str) -> Team:
        for team in self.settings_in_force.teams:
            if team.name == name:
                return team
        known = ", ".join(team.name for team in self.settings_in_force.teams) or "none"
        raise InvalidSetting(
            f"there is no team {name!r}; there is {known}", hint="'slurmbus bus init --team NAME' adds one"
        )

    def _put(self, team: Team) -> None:
        others = tuple(other for other in self.settings_in_force.teams if other.name != team.name)
        teams = tuple(sorted((*others, team), key=lambda one: one.name))
        self.settings = msgspec.structs.replace(self.settings_in_force, teams=teams)
        self.write()

    def _new_key(self, name: str) -> str:
        seed = new_user_seed()
        write_private(self._keys / f"{name}.nkey", f"{seed}\n".encode())
        return public_key(seed)

    # ------------------------------------------------------------------ files

    def write(self) -> bool:
        """Write the data and the configuration, and make or renew the certificate; True when that is a new one."""
        settings = self.settings_in_force
        renewed = False
        certificate, key = settings.certificate, settings.key
        if certificate is None or key is None:
            tls = ServerTls(self.folder / "tls", names=(settings.host,))
            renewed = tls.ensure()
            certificate = key = str(tls.certificate)
        write_private(self._data, msgspec.toml.encode(settings))
        write_private(self.configuration, self._render(settings, certificate, key).encode())
        return renewed

    def _render(self, settings: Settings, certificate: str, key: str) -> str:
        limits = BusLimits()
        account = limits.total * 2  # JetStream wants room for a stream besides those that there are
        tls = _block(
            "tls",
            f"cert_file: {_quoted(certificate)}",
            f"key_file: {_quoted(key)}",
            'min_version: "1.3"',
            "timeout: 5",
        )
        parts = [
            _HEAD,
            f"server_name: {_quoted(f'slurmbus-{settings.host}')}",
            f"listen: {_quoted(_listening(settings.listen, settings.port))}",
            f"pid_file: {_quoted(str(self.pid_file))}",
            "# Nobody gets in without TLS.",
            tls,
            "# Blobs come in pieces of 900 KiB and their headers.\nmax_payload: 1MB",
            "# Acknowledged messages are on the disk, also when the power is cut.\n"
            + _block(
                "jetstream",
                f"store_dir: {_quoted(str(self.folder / 'jetstream'))}",
                f"max_memory_store: {256 * _MIB}",
                f"max_file_store: {account * max(1, len(settings.teams))}",
                "sync_interval: always",
            ),
            _FLAGS,
        ]
        if settings.websocket:
            parts += [
                "# For networks that let out HTTPS only. A port below 1024 needs CAP_NET_BIND_SERVICE.",
                _block("websocket", f"listen: {_quoted(_listening(settings.listen, settings.websocket))}", tls),
            ]
        storage = _block(
            "jetstream",
            f"max_file: {account}",
            f"max_memory: {64 * _MIB}",
            "max_streams: 32",
            "max_consumers: 10000  # readers of logs come and go",
        )
        accounts = [_account(team, storage) for team in settings.teams]
        operator = f"users: [\n  # {self._keys / 'admin.nkey'}\n  {{ nkey: {settings.admin} }}\n]"
        parts += [
            "# A team is an account: what others do can't be seen from it.",
            _block(
                "accounts",
                *accounts,
                "# For the server's operator: 'nats server report' and the like.",
                _block("SYS", operator),
            ),
            "system_account: SYS",
        ]
        return "\n\n".join(parts) + "\n"


_HEAD = """\
# A shared NATS server for Slurmbus, written by 'slurmbus bus init' from team.toml beside it.
# Don't change it here: 'slurmbus bus init' and 'slurmbus bus users' write it again.
#
#   nats-server -c THIS_FILE                    starts it (2.12 or newer)
#   nats-server --signal reload=PID_FILE        takes over changed users and a renewed certificate
#
# 'slurmbus bus init' renews a certificate of its own when that is due: run it monthly, and reload."""


_FLAGS = """\
# Acknowledgements as Slurmbus reads them. nats-server 2.12 and 2.13 don't know the next line: leave it out there.
feature_flags { js_ack_fc_v2: false }"""


def _account(team: Team, storage: str) -> str:
    clients = ["# people and Dagster deployments: everything in this account"]
    agents = ["# agents: the least that they need, and their own site only"]
    for user in team.users:
        if user.agent:
            agents.append(
                f"{{ nkey: {user.nkey}, permissions: {json.dumps(agent_permissions(user.name))} }}  # {user.name}"
            )
        else:
            clients.append(f"{{ nkey: {user.nkey} }}  # {user.name}")
    users = textwrap.indent("\n".join((*clients, *agents)), "  ")
    return _block(_quoted(team.name), storage, f"users: [\n{users}\n]")


def _block(name: str, *lines: str) -> str:
    return f"{name} {{\n{textwrap.indent(chr(10).join(lines), '  ')}\n}}"


def _listening(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _quoted(text: str) -> str:
    """Quote a value: nats-server reads JSON's strings."""
    return json.dumps(text)
