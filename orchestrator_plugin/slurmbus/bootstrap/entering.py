"""Getting into a site: the connection that stands, or a new login."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurmbus.bootstrap import prompts
from slurmbus.bootstrap.login import Login
from slurmbus.bootstrap.ssh import Master, control_path
from slurmbus.bootstrap.telling import Teller
from slurmbus.errors import SiteUnfit
from slurmbus.home import Home


def master_of(home: Home, site: str) -> Master:
    """Give the connection of a site, whether or not it stands.

    Raises:
        UnknownSite: the home has no such site.
        SiteUnfit: nobody has said how to get in.
    """
    login = home.site(site).login
    if login is None:
        raise SiteUnfit(
            f"it isn't known how one gets into {site}", hint=f"slurmbus up {site} --host its-login-node, once"
        )
    return Master(login, control_path(home.path, site), log_file(home, site))


def log_file(home: Home, site: str) -> Path:
    """Where ``ssh`` writes what is wrong."""
    return home.path / "up" / f"{site}.ssh.log"


def enter(home: Home, site: str, teller: Teller, *, batch: bool = False) -> Master:
    """Log in, unless the connection stands.

    Args:
        home: whose site.
        site: its name.
        teller: is told.
        batch: never ask anybody, except an askpass program.

    Raises:
        LoginFailed: with what ssh said and what to do.
        InvalidSetting: the secrets can't be opened.
    """
    master = master_of(home, site)
    login: Login = master.login
    if master.alive:
        teller.step("login", f"{login.destination}: the connection stands")
        return master
    secrets = prompts.environment(login)
    prompts.before_login(login, secrets)
    through = f" through {', '.join(login.jump)}" if login.jump else ""
    began = time.monotonic()
    teller.progress(f"logging in at {login.destination}{through}", 0, 0)
    master.open(secrets, batch=batch and "SSH_ASKPASS" not in secrets)
    teller.step("login", f"{login.destination}{through} ({time.monotonic() - began:.1f} s)")
    return master


@contextmanager
def visiting(home: Home, site: str, teller: Teller, *, batch: bool = False) -> Iterator[Master]:
    """Be logged in for as long as the block lasts. A connection that stood before stays: a tunnel may go over it.

    One that was opened here ends, since it would be taken for the tunnel.

    Raises:
        LoginFailed: with what ssh said and what to do.
        InvalidSetting: the secrets can't be opened.
    """
    master = enter(home, site, teller, batch=batch)
    try:
        yield master
    finally:
        if master.opened:
            master.close()
