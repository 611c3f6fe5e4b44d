"""A bus outside of this machine is reached with TLS, or somebody has said that it needn't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurmbus.home import Home
from slurmbus.settings import ConnectionSettings
from slurmbus_agent.config import load
from slurmbus_protocol.dialling import check_encrypted
from slurmbus_protocol.errors import InvalidSetting

PLAIN = ("nats://bus.example.org:4222", "ws://bus.example.org", "nats://192.0.2.1", "nats://localhost.example.org")
FINE = (
    *("tls://bus.example.org", "wss://bus.example.org", "nats+unix:///run/bus.sock"),
    *("nats://127.0.0.1:1", "nats://127.8.8.8", "ws://localhost:80", "nats://[::1]:4222"),
)


@pytest.mark.parametrize("address", PLAIN)
def test_who_does_not_say_so_connects_to_no_bus_in_plain(tmp_path: Path, address: str) -> None:
    """At every door: adding a site, the agent's file, the client's settings; each error names the way out."""
    home = Home(tmp_path / "home")
    words = "isn't encrypted.*--allow-plain.*allow_plain = true"
    for servers, agent_servers in (([address], None), (["tls://bus"], [address])):
        with pytest.raises(InvalidSetting, match=words):
            home.add_site("a", servers, agent_servers=agent_servers)
    home.add_site("a", [address], allow_plain=True)
    bundle = home.bundle_path("a")
    assert load("a", bundle).servers == (address,)
    assert ConnectionSettings.of_site(home, "a").bus_settings().servers == (address,)

    bundle.write_text(bundle.read_text().replace("allow_plain = true\n", ""))
    with pytest.raises(InvalidSetting, match=words):
        load("a", bundle)
    with pytest.raises(InvalidSetting, match=words):
        ConnectionSettings(servers=(address,)).bus_settings()
    env = {"SLURMBUS_HOME": str(home.path), "SLURMBUS_URL": address}
    with pytest.raises(InvalidSetting, match=r"^SLURMBUS_URL: .*isn.t encrypted.*SLURMBUS_ALLOW_PLAIN"):
        ConnectionSettings.from_env(site="a", environ=env)  # the profile's word isn't about another bus
    settings = ConnectionSettings.from_env(site="a", environ={**env, "SLURMBUS_ALLOW_PLAIN": "1"})
    assert settings.bus_settings().servers == (address,)


@pytest.mark.parametrize("address", FINE)
def test_what_is_encrypted_or_stays_on_this_machine_needs_no_word(address: str) -> None:
    check_encrypted([address], pinned=False, allow_plain=False)


def test_a_pinned_authority_encrypts_all_but_a_plain_websocket(tmp_path: Path) -> None:
    """Of the team's bus with ``--ca``, and of this home's own."""
    authority = tmp_path / "ca.pem"
    authority.write_text("PEM")
    home = Home(tmp_path / "home")
    home.add_site("a", ["nats://bus.example.org"], ca_file=authority)
    assert load("a", home.bundle_path("a")).ca == "PEM"
    home.add_site("b", agent_servers=["nats://elsewhere:4222"])
    with pytest.raises(InvalidSetting, match="isn't encrypted"):
        home.add_site("a", ["ws://bus.example.org"], ca_file=authority)
