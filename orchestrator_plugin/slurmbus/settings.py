"""How to reach the bus, and with which keys."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from slurmbus.errors import UnknownSite
from slurmbus.home import EMBEDDED, Home
from slurmbus_protocol.bus import BusSettings
from slurmbus_protocol.dialling import check_encrypted
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.server_tls import TLS_NAME
from slurmbus_protocol.signing import Signer

PROBE_INTERVAL = 3.0
"""A link that is half open is noticed within this and the probe's 3 s; here a message every 3 s costs nothing."""


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How to reach the bus, and with which keys; hashable, picklable, holds no secret itself."""

    servers: tuple[str, ...] = ()
    """Addresses; none means the embedded server of ``home``, looked up when connecting."""
    credentials: Path | None = None
    """File with the NKEY seed of this client."""
    signing_key: Path | None = None
    """File with the Ed25519 seed that signs requests."""
    ca_file: Path | None = None
    """File with the authority of the servers; the embedded server's is taken from the home."""
    home: Path | None = None
    tls_name: str | None = None
    """The name in the servers' certificate, when it isn't the host's in their address."""
    allow_plain: bool = False
    """The servers may be reached without TLS, outside the loopback, too."""
    seal_key: str | None = None
    """The public key of the site's agent for secret values; None is what the site's profile has."""

    @classmethod
    def of_site(cls, home: Home, site: str) -> Self:
        """Take them from a site's profile; UnknownSite when the home has none."""
        profile = home.site(site)
        return cls(
            servers=() if profile.bus == EMBEDDED else tuple(profile.bus),
            credentials=home.path / profile.credentials,
            signing_key=home.path / profile.signing_key,
            ca_file=home.path / profile.ca_file if profile.ca_file else None,
            home=home.path,
            tls_name=profile.tls_name,
            allow_plain=profile.allow_plain,
        )

    @classmethod
    def from_env(
        cls, prefix: str = "SLURMBUS", *, site: str | None = None, environ: Mapping[str, str] | None = None
    ) -> Self:
        """Read ``<PREFIX>_URL`` (comma-separated), ``_CREDENTIALS``, ``_SIGNING_KEY``, ``_CA`` and the like.

        They are the fields of this class (``_ALLOW_PLAIN`` is 1 for yes), and ``<PREFIX>_HOME``. What isn't set comes
        from the site's profile in the home; without a site, from the home's embedded server.

        Raises:
            InvalidSetting: a value can't be used (the variable is named), or nothing says where the bus is.
            UnknownSite: the home doesn't know the site, and no ``<PREFIX>_URL`` says where the bus is.
        """
        env = os.environ if environ is None else environ
        named = env.get(f"{prefix}_HOME")
        home = Home(Path(named)) if named else Home.default(env)
        servers = _servers(f"{prefix}_URL", env)
        base = cls._from_home(home, site, prefix, required=not servers)
        ca_file = _file(f"{prefix}_CA", env) or base.ca_file
        # The profile's word is about the profile's bus.
        allow_plain = env.get(f"{prefix}_ALLOW_PLAIN") == "1" if servers else base.allow_plain
        try:
            check_encrypted(servers, pinned=ca_file is not None, allow_plain=allow_plain)
        except InvalidSetting as error:
            raise InvalidSetting(f"{prefix}_URL: {error.message}", hint=error.hint) from error
        return cls(
            servers=servers or base.servers,
            credentials=_file(f"{prefix}_CREDENTIALS", env) or base.credentials,
            signing_key=_file(f"{prefix}_SIGNING_KEY", env) or base.signing_key,
            ca_file=ca_file,
            home=home.path,
            allow_plain=allow_plain,
            tls_name=env.get(f"{prefix}_TLS_NAME") or base.tls_name,
            seal_key=env.get(f"{prefix}_SEAL_KEY") or None,
        )

    @classmethod
    def _from_home(cls, home: Home, site: str | None, prefix: str, *, required: bool) -> Self:
        keys = cls(
            credentials=home.credentials if home.credentials.exists() else None,
            signing_key=home.signing_key if home.signing_key.exists() else None,
            home=home.path,
        )
        if site is not None:
            try:
                return cls.of_site(home, site)
            except UnknownSite:
                if not required:
                    return keys
                raise
        if required and home.bus_address() is None:
            raise InvalidSetting(
                f"nothing says where the bus is: {prefix}_URL isn't set and {home.path} has no bus",
                hint=f"set {prefix}_URL, or make a site with 'slurmbus sites add NAME'",
            )
        return keys

    def bus_settings(self) -> BusSettings:
        """Read what is needed to connect.

        Raises:
            InvalidSetting: a file can't be read, or an address isn't encrypted.
            BusUnreachable: the home has no bus.
        """
        check_encrypted(self.servers, pinned=self.ca_file is not None, allow_plain=self.allow_plain)
        seed = None
        if self.credentials is not None:
            try:
                seed = self.credentials.read_text().strip()
            except OSError as error:
                raise InvalidSetting(f"credentials {self.credentials} can't be read: {error}") from error
        settings = BusSettings(
            servers=self.servers,
            nkey_seed=seed,
            ca_file=self.ca_file,
            name="slurmbus-client",
            probe_interval=PROBE_INTERVAL,
            tls_name=self.tls_name,
        )
        if self.servers:
            return settings
        if self.home is None:
            raise InvalidSetting("there are neither servers nor a home")
        home = Home(self.home)
        return replace(settings, servers=(home.bus_url(),), ca_file=home.bus_authority(), tls_name=TLS_NAME)

    def seal_key_of(self, site: str) -> str:
        """Give the key to which secret values for a site's agent are sealed; InvalidSetting when none is known."""
        public = self.seal_key
        if public is None and self.home is not None:
            with contextlib.suppress(UnknownSite):
                public = Home(self.home).site(site).seal_public
        if public is None:
            raise InvalidSetting(
                f"no key is known to which secret values for site {site} could be sealed",
                hint=f"'slurmbus up {site}' or 'slurmbus sites add {site}' makes one; elsewhere set SLURMBUS_SEAL_KEY",
            )
        return public

    def signer(self) -> Signer:
        """Read the key that signs requests; InvalidSetting when there is none."""
        if self.signing_key is None:
            raise InvalidSetting(
                "there is no signing key",
                hint="set SLURMBUS_SIGNING_KEY to its file, or make one with 'slurmbus sites add NAME'",
            )
        return Signer.load(self.signing_key)


def _servers(variable: str, env: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(url for url in (part.strip() for part in env.get(variable, "").split(",")) if url)


def _file(variable: str, env: Mapping[str, str]) -> Path | None:
    value = env.get(variable)
    if not value:
        return None
    path = Path(value).expanduser().absolute()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise InvalidSetting(f"{variable}={value} is no file that can be read")
    return path
