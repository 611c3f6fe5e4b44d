"""The home: keys that are made once, profiles, the agents' bundles, and who may connect."""

from __future__ import annotations

import threading
import tomllib
from pathlib import Path

import pytest

from slurmbus.errors import UnknownSite
from slurmbus.home import Home
from slurmbus_protocol.embedded import public_key
from slurmbus_protocol.errors import BusUnreachable, InvalidName, InvalidSetting
from slurmbus_protocol.sealing import seal_public
from slurmbus_protocol.server_tls import TLS_NAME
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.streams import agent_permissions


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "data" / "slurmbus")


def contents(home: Home) -> dict[str, bytes]:
    return {str(path.relative_to(home.path)): path.read_bytes() for path in home.path.rglob("*") if path.is_file()}


def test_where_it_is(tmp_path: Path) -> None:
    assert Home.default({"SLURMBUS_HOME": "/a"}).path == Path("/a")
    assert Home.default({"XDG_DATA_HOME": "/b"}).path == Path("/b/slurmbus")
    assert Home.default({}).path == Path.home() / ".local/share/slurmbus"
    home = Home(tmp_path / "nothing")
    assert home.sites() == []
    assert home.bus_address() is None
    assert not home.path.exists()


def test_a_site_is_made_once(home: Home) -> None:
    first = home.add_site("leonardo-alice", spool="/scratch/alice", link_host="10.0.0.1")
    before = contents(home)
    assert home.add_site("leonardo-alice", spool="/scratch/alice", link_host="10.0.0.1") == first
    assert contents(home) == before
    assert home.sites() == [first]
    assert home.site("leonardo-alice") == first


def test_changed_settings_keep_the_keys(home: Home) -> None:
    home.add_site("a")
    before = tomllib.loads(home.bundle_path("a").read_text())
    home.add_site("a", ["tls://team:4222"], agent_servers=["tls://tunnel:4222"], scheduler="native")
    after = tomllib.loads(home.bundle_path("a").read_text())
    assert after["nkey_seed"] == before["nkey_seed"]
    assert after["servers"] == ["tls://tunnel:4222"]
    assert after["scheduler"] == "native"


def test_what_was_set_in_a_bundle_by_hand_stays_in_it(home: Home) -> None:
    home.add_site("a")
    with home.bundle_path("a").open("a") as file:
        file.write("[retention]\nlost_days = inf\n")
    home.change_site("a", scheduler="commands")
    bundle = tomllib.loads(home.bundle_path("a").read_text())
    assert bundle["scheduler"] == "commands"
    assert bundle["retention"] == {"lost_days": float("inf")}


def test_the_bundle_is_all_that_the_agent_needs(home: Home) -> None:
    profile = home.add_site("a", slurm_conf="/etc/slurm/slurm.conf", python="/usr/bin/python3.11")
    bundle = tomllib.loads(home.bundle_path("a").read_text())
    address = home.bus_address()
    assert address is not None
    assert bundle == {
        "site": "a",
        "servers": [f"tls://127.0.0.1:{address.port}"],
        "nkey_seed": bundle["nkey_seed"],
        "trusted_keys": [Signer.load(home.signing_key).public],
        "scheduler": "auto",
        "ca": home.tls.authority.read_text(),
        "tls_name": TLS_NAME,
        "slurm_conf": "/etc/slurm/slurm.conf",
        "python": "/usr/bin/python3.11",
        "seal_key": bundle["seal_key"],
    }
    assert seal_public(bundle["seal_key"]) == profile.seal_public
    assert public_key(bundle["nkey_seed"]) == profile.agent_nkey


def test_only_the_owner_can_read_it(home: Home) -> None:
    home.add_site("a")
    for path in (home.path, *home.path.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    home.path.chmod(0o755)
    with pytest.raises(InvalidSetting, match="can be read by others"):
        home.add_site("b")


def test_agents_on_the_embedded_server_get_the_least_they_need(home: Home) -> None:
    home.add_site("a")
    home.add_site("elsewhere", ["tls://team:4222"])
    client, agent = home.bus_users()
    assert client.permissions is None
    assert client.nkey == public_key(home.credentials.read_text().strip())
    assert (agent.name, agent.permissions) == ("a", agent_permissions("a"))


def test_a_removed_site_leaves_no_key(home: Home) -> None:
    home.add_site("a")
    assert home.remove_site("a")
    assert not home.remove_site("a")
    assert home.sites() == []
    assert not home.bundle_path("a").exists()
    with pytest.raises(UnknownSite):
        home.site("a")


@pytest.mark.parametrize("name", ["", "a.b", "A", "a*", "../a", "a/b", "x" * 65])
def test_names_that_cannot_stand_in_a_subject(home: Home, name: str) -> None:
    with pytest.raises(InvalidName):
        home.add_site(name)
    with pytest.raises(InvalidName):
        home.remove_site(name)
    assert not home.path.exists()


def test_the_address_stays_and_bundles_follow_it(home: Home) -> None:
    with pytest.raises(BusUnreachable, match="has no bus"):
        home.bus_url()
    home.add_site("a")
    chosen = home.set_bus_address()
    assert home.set_bus_address() == chosen
    home.set_bus_address("192.0.2.1", 4333)
    assert tomllib.loads(home.bundle_path("a").read_text())["servers"] == ["tls://192.0.2.1:4333"]
    assert home.set_bus_address(host="0.0.0.0").port == 4333
    assert home.bus_url() == "tls://127.0.0.1:4333"
    assert "0.0.0.0" not in home.bundle_path("a").read_text()


def test_profiles_show_that_they_changed(home: Home) -> None:
    states = [home.profiles_state()]
    for change in (lambda: home.add_site("a"), lambda: home.add_site("a", spool="/x"), lambda: home.remove_site("a")):
        change()
        states.append(home.profiles_state())
    assert states[0] == states[3] == frozenset()
    assert len(set(states)) == 3


def test_several_that_add_at_once_agree_on_the_keys(home: Home) -> None:
    names = ["a", "b"] * 4
    threads = [threading.Thread(target=home.add_site, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seeds = {name: tomllib.loads(home.bundle_path(name).read_text())["nkey_seed"] for name in set(names)}
    assert {profile.name: profile.agent_nkey for profile in home.sites()} == {
        name: public_key(seed) for name, seed in seeds.items()
    }


def test_a_broken_profile_is_named(home: Home) -> None:
    home.add_site("a")
    (home.path / "sites" / "a.toml").write_text('name = "a"\nbus = 3\n')
    with pytest.raises(InvalidSetting, match=r"sites/a\.toml"):
        home.sites()
