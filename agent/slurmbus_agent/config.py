"""The agent's configuration: a TOML file a site that ``slurmbus up`` brings, and one beside it that is the user's own.

The first, the bundle, holds addresses and keys, and is written again whenever they change. The second,
``<site>.settings.toml``, holds what a user wants to be otherwise; nothing but its user writes it, and what it says
counts more.
"""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.environments.settings import EnvironmentSettings
from slurmbus_agent.guest.limits import HostLimits
from slurmbus_agent.retention import RetentionSettings
from slurmbus_protocol.bus import BusSettings
from slurmbus_protocol.dialling import check_encrypted
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.pinned import PinnedKey, PublicKeyHex
from slurmbus_protocol.streams import agent_inbox
from slurmbus_protocol.subjects import check_token


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user may set in ``<site>.settings.toml``. In the bundle it counts as well, until that is written anew."""

    watch_interval: float | None = None
    """Seconds between two questions for all jobs; some sites ask for more than the default."""
    array_size: Annotated[int, msgspec.Meta(ge=1)] = budgets.ARRAY_SIZE
    """Tasks that Slurm gets as one array, less than its MaxArraySize; a longer array is submitted as several."""
    limits: HostLimits = HostLimits()
    """What the agent may use of the login node and of the controller; a site's policy may say less."""
    retention: RetentionSettings = RetentionSettings()
    """How long finished jobs are kept."""
    environments: EnvironmentSettings = EnvironmentSettings()
    """Where environments are installed."""
    log_format: Literal["text", "json"] = "text"
    """The agent's own log: lines for people, or one JSON object a line."""


class AgentConfig(AgentSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one site's agent needs to know."""

    site: str
    servers: tuple[str, ...]
    trusted_keys: tuple[str, ...]
    """Public keys, 64 hex digits each, whose requests are accepted."""
    nkey_seed: str | None = None
    """The NKEY user seed with which the agent connects to the bus."""
    ca_file: str | None = None
    """File with the authority of the bus's certificate."""
    ca: str | None = None
    """The same as PEM, here in this file."""
    tls_name: str | None = None
    """The name in the bus's certificate, when it isn't the host's in ``servers``."""
    allow_plain: bool = False
    """The bus may be reached without TLS, outside the loopback, too."""
    scheduler: str = "auto"
    spool: str | None = None
    """The spool's root on the shared file system; ``~/.slurmbus/<site>`` when it isn't set."""
    slurm_conf: str | None = None
    link_host: str | None = None
    """The address under which compute nodes reach this host; its own host name's when it isn't set."""
    python: str = "python3"
    """The interpreter (3.9 or newer) that starts the runner on compute nodes."""
    seal_key: str | None = None
    """The private X25519 key, 64 hex digits, to which clients seal secret values."""
    keys: tuple[PinnedKey, ...] = ()
    """What is known of trusted keys beyond the bare ones in ``trusted_keys``; a key may stand here alone."""
    revoked_keys: tuple[PublicKeyHex, ...] = ()
    """Keys that are never accepted again, whoever brings them in."""

    @property
    def environments_root(self) -> Path:
        """Where environments are installed."""
        folder = self.environments.folder
        return Path(folder).expanduser().absolute() if folder else self.spool_root / "environments"

    @property
    def spool_root(self) -> Path:
        """Where the spool lies."""
        return Path(self.spool or f"~/.slurmbus/{self.site}").expanduser().absolute()

    def bus_settings(self, agent_id: str) -> BusSettings:
        """Give what the connection needs."""
        return BusSettings(
            servers=self.servers,
            nkey_seed=self.nkey_seed,
            ca_file=Path(self.ca_file).expanduser() if self.ca_file else None,
            inbox=agent_inbox(self.site),
            ping_interval=budgets.BUS_PING,
            name=f"slurmbus-agent {self.site} {agent_id}",
            ca=self.ca,
            tls_name=self.tls_name,
        )


def default_path(site: str) -> Path:
    """Give the place of a site's configuration when none is named."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "slurmbus" / f"{check_token(site, 'site')}.toml"


def settings_path(bundle: Path, site: str) -> Path:
    """Give the place of what the user has set, beside the bundle."""
    return bundle.parent / f"{site}.settings.toml"


def load(site: str, path: Path | None = None) -> AgentConfig:
    """Read a site's configuration: the bundle, and what its user has set.

    Raises:
        InvalidSetting: the bundle isn't there, others can read it or write the settings, or a field is wrong; the
            message names it.
    """
    path = path or default_path(site)
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except OSError as error:
        raise InvalidSetting(
            f"the configuration {path} can't be read: {error.strerror}",
            hint=f"make it with 'slurmbus sites add {site}' on the Dagster machine and copy it here",
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidSetting(f"{path} holds keys and can be read by others", hint=f"chmod 600 {path}")
    settings = _read_settings(settings_path(path, site))
    try:
        config = msgspec.convert(_over(tomllib.loads(text), settings), AgentConfig)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidSetting(f"{path}: {error}") from error
    check_token(config.site, "site")
    if config.site != site:
        raise InvalidSetting(f"{path} is for site {config.site!r}, not {site!r}", hint=f"use --site {config.site}")
    if not config.servers:
        raise InvalidSetting(f"{path}: servers is empty", hint='servers = ["tls://host:4222"]')
    check_encrypted(config.servers, pinned=bool(config.ca or config.ca_file), allow_plain=config.allow_plain)
    return config


def _read_settings(path: Path) -> dict[str, Any]:
    """Give what the user has set; a file that isn't as it has to be is never taken for none."""
    try:
        mode = path.stat().st_mode
        settings = tomllib.loads(path.read_text())
        msgspec.convert(settings, AgentSettings)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidSetting(f"the settings {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidSetting(f"{path}: {error}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidSetting(f"{path} can be written by others", hint=f"chmod 600 {path}")
    return settings


def _over(bundle: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Put settings over those of a bundle, in tables entry by entry."""
    tables = {
        name: {**bundle[name], **table}
        for name, table in settings.items()
        if isinstance(table, dict) and isinstance(bundle.get(name), dict)
    }
    return {**bundle, **settings, **tables}
