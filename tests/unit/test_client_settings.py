"""Where the bus is, from the environment and the home."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import pytest

from slurmbus.errors import UnknownSite
from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import InvalidSetting


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_nothing_set_takes_the_home(home: Home) -> None:
    home.add_site("a")
    env = {"SLURMBUS_HOME": str(home.path)}
    settings = ConnectionSettings.from_env(site="a", environ=env)
    assert settings == ConnectionSettings.of_site(home, "a") == ConnectionSettings.from_env(environ=env)
    assert pickle.loads(pickle.dumps(settings)) == settings
    bus = settings.bus_settings()
    assert bus.servers == (home.bus_url(),)
    assert bus.nkey_seed == home.credentials.read_text().strip()
    assert settings.signer().public


def test_a_site_with_a_bus_of_its_own(home: Home, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("PEM\n")
    home.add_site("a", ["tls://one:4222", "tls://two:4222"], ca_file=authority, tls_name="bus.example.org")
    settings = ConnectionSettings.from_env(site="a", environ={"SLURMBUS_HOME": str(home.path)})
    assert settings.servers == ("tls://one:4222", "tls://two:4222")
    assert settings.ca_file == authority
    assert settings.tls_name == "bus.example.org"
    bundle = tomllib.loads(home.bundle_path("a").read_text())
    assert (bundle["ca"], bundle["tls_name"]) == ("PEM\n", "bus.example.org")


def test_variables_win(home: Home, tmp_path: Path) -> None:
    home.add_site("a")
    seed = tmp_path / "seed"
    seed.write_text("SUXXX\n")
    env = {"TEAM_HOME": str(home.path), "TEAM_URL": "tls://one:1, tls://two:2", "TEAM_CREDENTIALS": str(seed)}
    settings = ConnectionSettings.from_env("TEAM", site="unknown-here", environ=env)
    assert settings.servers == ("tls://one:1", "tls://two:2")
    assert settings.bus_settings().nkey_seed == "SUXXX"
    assert settings.signing_key == home.signing_key


def test_what_cannot_be_used_is_named(home: Home, tmp_path: Path) -> None:
    base = {"SLURMBUS_HOME": str(home.path)}
    with pytest.raises(InvalidSetting, match="SLURMBUS_URL isn't set"):
        ConnectionSettings.from_env(environ=base)
    with pytest.raises(UnknownSite):
        ConnectionSettings.from_env(site="a", environ=base)
    with pytest.raises(InvalidSetting, match="SLURMBUS_URL"):
        ConnectionSettings.from_env(environ={**base, "SLURMBUS_URL": "http://host"})
    for variable in ("CREDENTIALS", "SIGNING_KEY", "CA"):
        missing = {**base, "SLURMBUS_URL": "tls://a:1", f"SLURMBUS_{variable}": str(tmp_path / "missing")}
        with pytest.raises(InvalidSetting, match=f"SLURMBUS_{variable}"):
            ConnectionSettings.from_env(environ=missing)
    without_key = ConnectionSettings.from_env(environ={**base, "SLURMBUS_URL": "tls://a:1"})
    with pytest.raises(InvalidSetting, match="no signing key"):
        without_key.signer()
