"""Grants: made by a login, counted only when a trusted key signed them for this very site."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from slurmbus import authority
from slurmbus.home import Home
from slurmbus_protocol import grants
from slurmbus_protocol.errors import BadSignature, InvalidSetting
from slurmbus_protocol.grants import DAY, Grant, GrantNotAccepted
from slurmbus_protocol.signing import Signer, TrustedKeys

NOW = 1_000_000.0


@pytest.fixture
def signer() -> Signer:
    return Signer.generate()


def read(content: bytes, signer: Signer, site: str = "a", now: float = NOW) -> Grant:
    return grants.read(content, site, TrustedKeys([signer.public]), now)


def test_a_grant_lasts_for_seven_days_unless_somebody_says_otherwise(signer: Signer) -> None:
    grant = grants.issue(signer, "a", "alice@laptop", now=NOW)
    assert read(grants.write(grant), signer) == grant
    assert grant.expires_at == NOW + 7 * DAY
    assert grants.issue(signer, "a", "alice@laptop", 0.5, now=NOW).expires_at == NOW + DAY / 2


@pytest.mark.parametrize("days", [0, -1, float("inf"), float("nan")])
def test_a_grant_needs_an_end(signer: Signer, days: float) -> None:
    with pytest.raises(InvalidSetting, match="days"):
        grants.issue(signer, "a", "alice@laptop", days)


@pytest.mark.parametrize("change", [{"expires_at": NOW * 2}, {"issuer": "mallory"}, {"issued_at": 0.0}])
def test_a_changed_grant_does_not_count(signer: Signer, change: dict[str, object]) -> None:
    grant = grants.issue(signer, "a", "alice@laptop", now=NOW)
    with pytest.raises(BadSignature):
        read(grants.write(msgspec.structs.replace(grant, **change)), signer)


def test_a_grant_of_a_stranger_another_site_or_the_future_does_not_count(signer: Signer) -> None:
    content = grants.write(grants.issue(signer, "a", "alice@laptop", now=NOW))
    with pytest.raises(BadSignature, match="unknown key"):
        read(content, Signer.generate())
    with pytest.raises(GrantNotAccepted, match="site"):
        read(content, signer, site="b")
    with pytest.raises(GrantNotAccepted, match="future"):
        read(content, signer, now=NOW - DAY)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"site": 7}', b"[" * 5000])
def test_a_broken_grant_does_not_count(signer: Signer, content: bytes) -> None:
    with pytest.raises(GrantNotAccepted, match="read"):
        read(content, signer)


def test_a_signed_request_is_no_grant(signer: Signer) -> None:
    grant = msgspec.structs.replace(grants.issue(signer, "a", "alice", now=NOW), signature="")
    headers = signer.headers("a.subject", grant.covered())
    forged = msgspec.structs.replace(grant, signature=headers["Slurmbus-Signature"])
    with pytest.raises(BadSignature):
        read(grants.write(forged), signer)


def test_a_login_brings_bundle_and_policy_and_a_grant(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.add_site("a", ["tls://bus:4222"])
    home.policy_path("a").write_text("max_nodes = 1\n")
    assert set(authority.files(home, "a")) == {"a.toml", "a.policy.toml"}
    grant = authority.issue(home, "a", days=2)
    assert grant.key == Signer.load(home.signing_key).public
    assert authority.current(home, "a") is None, "it isn't there yet"
    authority.keep(home, "a", grant)
    assert authority.current(home, "a") == grant
    assert stat.S_IMODE(home.grant_path("a").stat().st_mode) == 0o600
    home.remove_site("a")
    assert not home.grant_path("a").exists()
