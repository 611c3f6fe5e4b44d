"""How Dagster's side reaches the bus."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Self

import dagster as dg
from pydantic import Field

from dagster_slurmbus.values import resolved
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.home import Home
from slurmbus.local import ensure_local


class BusResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic over what a resource turns into
    """The bus: a NATS server of your own, or the one that ``slurmbus`` keeps on this machine.

    Values are read when the first job is submitted, never earlier. Secrets are named by the files that hold them.
    What isn't set here is read from environment variables that begin with ``prefix``: ``<PREFIX>_URL``,
    ``<PREFIX>_CREDENTIALS``, ``<PREFIX>_SIGNING_KEY``, ``<PREFIX>_CA``, ``<PREFIX>_TLS_NAME``, ``<PREFIX>_HOME``.
    """

    prefix: str = Field(default="SLURMBUS", description="What the environment variables begin with.")
    servers: list[str] | None = Field(default=None, description="Addresses of the NATS servers: tls://host:4222.")
    credentials: str | None = Field(default=None, description="File with the NKEY seed of this client.")
    signing_key: str | None = Field(default=None, description="File with the key that signs requests.")
    ca_file: str | None = Field(default=None, description="File with the certificate authority of the servers.")
    tls_name: str | None = Field(default=None, description="The name in their certificate, if not the host's.")
    home: str | None = Field(default=None, description="Folder with the keys, the sites and the server of slurmbus.")

    @classmethod
    def from_env(cls, prefix: str = "SLURMBUS") -> Self:
        """Give a bus whose settings stand in environment variables; only the prefix is kept, nothing is read yet."""
        return cls(prefix=prefix)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields alone: Dagster's resources carry things that can't be unpickled."""
        return partial(type(self), **{name: getattr(self, name) for name in type(self).model_fields}), ()

    def settings(self, site: str) -> ConnectionSettings:
        """Put together what stands here and what stands in the environment, now."""
        prefix = resolved(self.prefix, "bus.prefix")
        given = {
            "URL": ",".join(resolved(server, "bus.servers") for server in self.servers or ()),
            "CREDENTIALS": resolved(self.credentials, "bus.credentials"),
            "SIGNING_KEY": resolved(self.signing_key, "bus.signing_key"),
            "CA": resolved(self.ca_file, "bus.ca_file"),
            "TLS_NAME": resolved(self.tls_name, "bus.tls_name"),
            "HOME": resolved(self.home, "bus.home"),
        }
        environ = {**os.environ, **{f"{prefix}_{name}": value for name, value in given.items() if value}}
        return ConnectionSettings.from_env(prefix, site=site, environ=environ)

    def site_client(self, site: str) -> SiteClient:
        """Give the client of a site; it connects at its first use, once for all clients of this process."""
        return SiteClient(Connection.get(self.settings(site)), site)


def local_client(home: Path | None = None) -> SiteClient:
    """Give the client of the local helper, which is started when it doesn't run."""
    settings, site = ensure_local(Home(home) if home is not None else None)
    return SiteClient(Connection.get(settings), site)
