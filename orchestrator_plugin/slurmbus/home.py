"""The user's folder on the client's side: keys, sites and the address of the embedded server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from slurmbus.bootstrap.login import Login
from slurmbus.errors import UnknownSite
from slurmbus_protocol.dialling import check_encrypted, is_loopback
from slurmbus_protocol.embedded import BusUser, new_user_seed, public_key
from slurmbus_protocol.errors import BusUnreachable, InvalidSetting
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.private_files import write_private
from slurmbus_protocol.sealing import new_seal_key, seal_public
from slurmbus_protocol.server_tls import TLS_NAME, ServerTls
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.streams import agent_permissions
from slurmbus_protocol.subjects import check_token

SchedulerKind = Literal["auto", "native", "commands", "local"]
EMBEDDED = "embedded"
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not bound


class SiteProfile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a home knows of a site. Relative paths count from the home."""

    name: str
    bus: Literal["embedded"] | tuple[str, ...]
    """The embedded server of this home, or addresses."""
    credentials: Path
    signing_key: Path
    agent_nkey: str
    """The agent's public key (``U…``), which the bus must know with its permissions."""
    ca_file: Path | None = None
    agent_servers: tuple[str, ...] | None = None
    """How the agent reaches the bus when that isn't how this machine does (a tunnel, another name)."""
    scheduler: SchedulerKind = "auto"
    spool: str | None = None
    slurm_conf: str | None = None
    link_host: str | None = None
    python: str | None = None
    seal_public: str | None = None
    """To which secret values for this site's agent are sealed."""
    trusted: tuple[PinnedKey, ...] = ()
    """Keys besides this home's whose requests the agent shall accept, and what this home's own one succeeds."""
    revoked: tuple[str, ...] = ()
    retiring_nkey: str | None = None
    """The agent's former public key, which the bus still knows while the new one is on its way."""
    tls_name: str | None = None
    """The name in the certificate of the team's own bus, when it isn't the host's in its address."""
    allow_plain: bool = False
    """The team's own bus may be reached without TLS, by this machine and by the agent."""
    tls: bool = False
    """Its agent's file names the authority of this home's bus. Files from before there was TLS don't: see
    :meth:`Home.also_plain`."""
    login: Login | None = None
    """How one gets in there; None when the agent was put there by hand."""


class AgentBundle(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The one file that an agent needs, to be copied to ``~/.config/slurmbus/<site>.toml`` on the login node."""

    site: str
    servers: tuple[str, ...]
    nkey_seed: str
    trusted_keys: tuple[str, ...]
    scheduler: SchedulerKind
    ca: str | None = None
    """The authority of the bus's certificate, as PEM: the agent takes no other."""
    tls_name: str | None = None
    """The name in that certificate, when it isn't the host's in ``servers``."""
    allow_plain: bool = False
    """The bus may be reached without TLS."""
    spool: str | None = None
    slurm_conf: str | None = None
    link_host: str | None = None
    """On which address runners reach the agent."""
    python: str | None = None
    """The interpreter that starts the runner."""
    seal_key: str | None = None
    """The private key to which secret values are sealed."""
    keys: tuple[PinnedKey, ...] = ()
    """What is known of trusted keys beyond the bare ones in ``trusted_keys``."""
    revoked_keys: tuple[str, ...] = ()


class BusAddress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the embedded server listens; chosen once, so that agents and tunnels survive restarts."""

    host: str
    port: int
    websocket: int | None = None
    """The port on which it takes WebSocket connections, too."""

    @property
    def url(self) -> str:
        """The address as this machine connects to it."""
        return _url(_WILDCARDS.get(self.host, self.host), self.port)

    @property
    def loopback(self) -> bool:
        """True when only this machine reaches it."""
        return is_loopback(self.host)


S = TypeVar("S")


class Home:
    """The folder; nothing is made before something is added.

    ``bus/`` belongs to the embedded server, ``tls/`` holds its authority and certificate, ``client.key`` signs
    requests, ``client.nkey`` opens the bus, ``metrics.token`` opens ``/metrics``,
    ``sites/<name>.toml`` are the profiles and ``agents/<name>.toml`` the bundles for the agents.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.bus_folder = self.path / "bus"
        self.tls = ServerTls(self.path / "tls")
        self.signing_key = self.path / "client.key"
        self.credentials = self.path / "client.nkey"
        self._sites = self.path / "sites"
        self._agents = self.path / "agents"
        self._address = self.path / "bus.toml"

    @classmethod
    def default(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Give ``$SLURMBUS_HOME``, else ``$XDG_DATA_HOME/slurmbus``, else ``~/.local/share/slurmbus``."""
        env = os.environ if environ is None else environ
        named = env.get("SLURMBUS_HOME")
        if named:
            return cls(Path(named))
        data = env.get("XDG_DATA_HOME")
        return cls((Path(data) if data else Path("~/.local/share")) / "slurmbus")

    def metrics_token(self) -> Path:
        """Give the file with the token that opens ``/metrics``; it is made once, so that scrapers keep it."""
        self.make_folders()
        path = self.path / "metrics.token"
        with self._locked():
            if not path.exists():
                write_private(path, secrets.token_urlsafe(32).encode())
        return path

    def make(self) -> None:
        """Make the folder and the client's two keys where they are missing."""
        self.make_folders()
        with self._locked():
            if not self.signing_key.exists():
                Signer.generate().save(self.signing_key)
            if not self.credentials.exists():
                write_private(self.credentials, f"{new_user_seed()}\n".encode())

    # ------------------------------------------------------------------ sites

    def add_site(
        self,
        name: str,
        servers: Sequence[str] | None = None,
        *,
        credentials: Path | None = None,
        ca_file: Path | None = None,
        agent_servers: Sequence[str] | None = None,
        scheduler: SchedulerKind = "auto",
        spool: str | None = None,
        slurm_conf: str | None = None,
        link_host: str | None = None,
        python: str | None = None,
        tls_name: str | None = None,
        allow_plain: bool = False,
    ) -> SiteProfile:
        """Make a site with its keys, or change its settings; keys are made once and kept.

        A running embedded server takes the new agent within a moment: its owner watches the profiles.

        Args:
            name: e.g. ``leonardo-alice``.
            servers: the addresses of the team's own bus; None is this home's embedded server.
            credentials: file with this client's NKEY seed for that bus; None is ``client.nkey``.
            ca_file: authority of the bus's TLS certificate.
            agent_servers: how the agent reaches the bus when that isn't how this machine does.
            scheduler: what the agent shall submit to.
            spool: the agent's spool folder on the cluster; None leaves it to the agent.
            slurm_conf: path of ``slurm.conf`` on the cluster; None leaves it to the agent.
            link_host: address on which runners reach the agent; None leaves it to the agent.
            python: interpreter that starts the runner on the cluster; None leaves it to the agent.
            tls_name: the name in the bus's certificate, when it isn't the host's in its address.
            allow_plain: the bus may be reached without TLS, outside the loopback, too.

        Raises:
            InvalidName: the name can't stand in a subject.
            InvalidSetting: an address is none or isn't encrypted, or the authority can't be read.
        """
        check_token(name, "site")
        pinned = not servers or ca_file is not None
        check_encrypted((*(servers or ()), *(agent_servers or ())), pinned=pinned, allow_plain=allow_plain)
        self.make()
        with self._locked():
            bundle = self._bundle(name)
            before = self.site(name) if self._profile_path(name).exists() else None
            seed = bundle.nkey_seed if bundle else new_user_seed()
            seal_key = (bundle.seal_key if bundle else None) or new_seal_key()
            profile = SiteProfile(
                name=name,
                bus=tuple(servers) if servers else "embedded",
                credentials=credentials.absolute() if credentials else Path(self.credentials.name),
                signing_key=before.signing_key if before else Path(self.signing_key.name),
                agent_nkey=public_key(seed),
                ca_file=ca_file.absolute() if ca_file else None,
                agent_servers=tuple(agent_servers) if agent_servers else None,
                scheduler=scheduler,
                spool=spool,
                slurm_conf=slurm_conf,
                link_host=link_host,
                python=python,
                seal_public=seal_public(seal_key),
                trusted=before.trusted if before else (),
                revoked=before.revoked if before else (),
                retiring_nkey=before.retiring_nkey if before else None,
                tls_name=tls_name,
                allow_plain=allow_plain,
                tls=not servers,
                login=before.login if before else None,
            )
            self._write_bundle(profile, seed, seal_key)
            _write_toml(self._profile_path(name), profile)
        return profile

    def remove_site(self, name: str) -> bool:
        """Forget a site and its agent's key; False when there is none. Its jobs and its agent aren't touched."""
        check_token(name, "site")
        if not self._profile_path(name).exists():
            return False
        with self._locked():
            self._profile_path(name).unlink(missing_ok=True)
            for path in (self.bundle_path(name), self.grant_path(name)):
                path.unlink(missing_ok=True)
        return True

    def change_site(self, name: str, *, nkey_seed: str | None = None, **changes: Any) -> SiteProfile:
        """Change single fields of a site's profile, and its bundle with them.

        Args:
            name: of the site.
            nkey_seed: a new bus key for its agent; None keeps the one that it has.
            **changes: fields of the profile.
        """
        with self._locked():
            bundle = self._bundle(name)
            if bundle is None:
                raise UnknownSite(f"{self.path} has no bundle of site {name!r}")
            profile = msgspec.structs.replace(self.site(name), **changes)
            self._write_bundle(profile, nkey_seed or bundle.nkey_seed, bundle.seal_key)
            _write_toml(self._profile_path(name), profile)
        return profile

    def sites(self) -> list[SiteProfile]:
        """Give the profiles by name."""
        return [_read_toml(path, SiteProfile) for path in sorted(self._sites.glob("*.toml"))]

    def site(self, name: str) -> SiteProfile:
        """Give one profile; UnknownSite when there is none."""
        path = self._profile_path(check_token(name, "site"))
        if not path.exists():
            raise UnknownSite(f"there is no site {name!r} in {self.path}")
        return _read_toml(path, SiteProfile)

    def bundle_path(self, name: str) -> Path:
        """Where the agent's file lies."""
        return self._agents / f"{check_token(name, 'site')}.toml"

    def grant_path(self, name: str) -> Path:
        """Where the agent's grant lies, once there is one."""
        return self._agents / f"{check_token(name, 'site')}.grant"

    def policy_path(self, name: str) -> Path:
        """Where a policy for the agent lies, if the user wrote one."""
        return self._agents / f"{check_token(name, 'site')}.policy.toml"

    def profiles_state(self) -> frozenset[tuple[str, int, int]]:
        """Give something that changes whenever a profile does."""
        state = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self._sites) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    state.add((entry.name, status.st_ino, status.st_mtime_ns))
        return frozenset(state)

    # ------------------------------------------------------------------ the embedded server

    def bus_users(self) -> list[BusUser]:
        """Give who may connect to the embedded server: this client, and each site's agent with the least it needs."""
        client = BusUser("client", public_key(self.credentials.read_text().strip()))
        agents = [
            BusUser(profile.name, nkey, agent_permissions(profile.name))
            for profile in self.sites()
            for nkey in (profile.agent_nkey, profile.retiring_nkey)
            if profile.bus == EMBEDDED and nkey is not None
        ]
        return [client, *agents]

    def bus_address(self) -> BusAddress | None:
        """Give where the embedded server listens, or None when that was never chosen."""
        return _read_toml(self._address, BusAddress) if self._address.exists() else None

    def set_bus_address(
        self, host: str | None = None, port: int | None = None, websocket: int | None = None
    ) -> BusAddress:
        """Choose where the embedded server listens and tell the agents' bundles; None keeps what was chosen before."""
        self.make()
        with self._locked():
            old = self.bus_address()
            new = self._choose_address(old, host, port, websocket)
            if new != old:
                _write_toml(self._address, new)
                for profile in self.sites():
                    bundle = self._bundle(profile.name)
                    if bundle is not None:
                        self._write_bundle(profile, bundle.nkey_seed, bundle.seal_key)
        return new

    def bus_url(self) -> str:
        """Give the embedded server's address; BusUnreachable when this home has none."""
        address = self.bus_address()
        if address is None:
            raise BusUnreachable(f"{self.path} has no bus", hint="start it with 'slurmbus bus run'")
        return address.url

    def bus_authority(self) -> Path:
        """Give the file with the embedded server's authority; BusUnreachable when it has none yet."""
        if not self.tls.authority.exists():
            raise BusUnreachable(
                f"the bus of {self.path} was started before there was TLS",
                hint="start it again with 'slurmbus bus run'",
            )
        return self.tls.authority

    def also_plain(self) -> bool:
        """Tell whether the embedded server lets clients in that don't know TLS: agents from before there was any.

        Only over loopback, and only until every such site was added again and its agent has its new file.
        """
        address = self.bus_address()
        return address is not None and address.loopback and bool(self.sites_without_tls())

    def sites_without_tls(self) -> list[str]:
        """Give the sites of the embedded server whose agents' files may be from before there was TLS."""
        return [profile.name for profile in self.sites() if profile.bus == EMBEDDED and not profile.tls]

    def renew_certificate(self) -> bool:
        """Make the embedded server's certificate when it is missing or due; True when it is a new one."""
        with self._locked():
            return self.tls.ensure()

    # ------------------------------------------------------------------ files

    @staticmethod
    def _choose_address(
        old: BusAddress | None, host: str | None = None, port: int | None = None, websocket: int | None = None
    ) -> BusAddress:
        chosen = host or (old.host if old else "127.0.0.1")
        return BusAddress(
            host=chosen,
            port=port or (old.port if old else free_port(chosen)),
            websocket=websocket or (old.websocket if old else None),
        )

    def _write_bundle(self, profile: SiteProfile, seed: str, seal_key: str | None) -> None:
        bundle = AgentBundle(
            site=profile.name,
            servers=profile.agent_servers or self._servers(profile),
            nkey_seed=seed,
            trusted_keys=(Signer.load(self.path / profile.signing_key).public,),
            scheduler=profile.scheduler,
            ca=self._authority(profile),
            tls_name=TLS_NAME if profile.bus == EMBEDDED else profile.tls_name,
            allow_plain=profile.allow_plain,
            spool=profile.spool,
            slurm_conf=profile.slurm_conf,
            link_host=profile.link_host,
            python=profile.python,
            seal_key=seal_key,
            keys=profile.trusted,
            revoked_keys=profile.revoked,
        )
        path = self.bundle_path(profile.name)
        by_hand = _read_toml(path, dict[str, Any]) if path.exists() else {}
        kept = {name: value for name, value in by_hand.items() if name not in AgentBundle.__struct_fields__}
        write_private(path, msgspec.toml.encode({**msgspec.to_builtins(bundle), **kept}))

    def _servers(self, profile: SiteProfile) -> tuple[str, ...]:
        """Give the bus's addresses as another machine sees them."""
        if profile.bus != EMBEDDED:
            return tuple(profile.bus)
        address = self.bus_address()
        if address is None:
            address = self._choose_address(None)
            _write_toml(self._address, address)
        return (_url(_reachable(address.host), address.port),)

    def _authority(self, profile: SiteProfile) -> str | None:
        if profile.bus == EMBEDDED:
            self.tls.ensure()
            return self.tls.pinned()
        if profile.ca_file is None:
            return None
        try:
            return (self.path / profile.ca_file).read_text()
        except (OSError, ValueError) as error:
            raise InvalidSetting(f"the authority {profile.ca_file} can't be read: {error}") from error

    def _bundle(self, name: str) -> AgentBundle | None:
        path = self.bundle_path(name)
        return _read_toml(path, AgentBundle) if path.exists() else None

    def _profile_path(self, name: str) -> Path:
        return self._sites / f"{name}.toml"

    def make_folders(self) -> None:
        """Make the folders where they are missing; InvalidSetting when others can read them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self._sites, self._agents):
            folder.mkdir(mode=0o700, exist_ok=True)
        if self.path.stat().st_mode & 0o077:
            raise InvalidSetting(f"{self.path} can be read by others", hint=f"chmod 700 {self.path}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _write_toml(path: Path, value: msgspec.Struct) -> None:
    write_private(path, msgspec.toml.encode(value, enc_hook=_plain))


def _read_toml(path: Path, kind: type[S]) -> S:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind, dec_hook=lambda wanted, found: wanted(found))
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidSetting(f"{path} can't be used: {error}") from error


def _url(host: str, port: int) -> str:
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"


def _reachable(host: str) -> str:
    return socket.gethostname() if host in _WILDCARDS else host


def free_port(host: str) -> int:
    """Give a port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
