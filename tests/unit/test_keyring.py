"""Keys: brought in, replaced, revoked; and who may control whose jobs."""

from __future__ import annotations

import pytest

from slurmbus_agent.authority.keyring import MOST_KEYS, RETIRES_AFTER, KeyNotChanged, Keyring
from slurmbus_protocol.errors import BadSignature, InvalidSetting
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.signing import Signer

NOW = 1_000.0


def accepts(ring: Keyring, signer: Signer, now: float = NOW) -> bool:
    try:
        return ring.verify("s", b"b", signer.headers("s", b"b"), now) == signer.public
    except BadSignature:
        return False


@pytest.fixture
def signers() -> list[Signer]:
    return [Signer.generate() for _ in range(4)]


def test_a_trusted_key_brings_in_another_one(signers: list[Signer]) -> None:
    one, two, *_ = signers
    ring = Keyring.of([one.public])
    assert not accepts(ring, two)
    more = ring.trust(one.public, two.public, "two", succeeds=False, now=NOW)
    assert accepts(more, one)
    assert accepts(more, two)
    assert not more.may_control(two.public, one.public)
    assert not accepts(ring, two)


def test_a_replaced_key_counts_until_what_it_signed_has_expired_and_its_jobs_pass_on(signers: list[Signer]) -> None:
    one, two, three, _ = signers
    ring = Keyring.of([one.public]).trust(one.public, two.public, "two", succeeds=True, now=NOW)
    assert accepts(ring, one, NOW + RETIRES_AFTER - 1)
    assert not accepts(ring, one, NOW + RETIRES_AFTER + 1)
    ring = ring.trust(two.public, three.public, "three", succeeds=True, now=NOW)
    assert ring.may_control(three.public, one.public)
    assert not ring.may_control(one.public, three.public)
    again = ring.trust(one.public, two.public, "two", succeeds=True, now=NOW + 100)
    assert not accepts(again, one, NOW + RETIRES_AFTER + 1)
    with pytest.raises(KeyNotChanged):
        ring.trust(two.public, one.public, "one", succeeds=False, now=NOW + RETIRES_AFTER + 1)


def test_a_revoked_key_never_comes_back(signers: list[Signer]) -> None:
    one, two, *_ = signers
    ring = Keyring.of([one.public, two.public]).revoke(one.public, two.public)
    assert not accepts(ring, two)
    with pytest.raises(KeyNotChanged):
        ring.trust(one.public, two.public, "two", succeeds=False, now=NOW)
    by_login = Keyring.of([one.public, two.public], [PinnedKey(name="two", key=two.public)], changes=ring.changes)
    assert not accepts(by_login, two)
    with pytest.raises(BadSignature, match="revoked"):
        by_login.verify("s", b"b", two.headers("s", b"b"), NOW)
    assert not accepts(Keyring.of([one.public, two.public], revoked=[two.public]), two)


def test_with_a_stolen_key_goes_what_it_brought_in_but_not_its_revoker(signers: list[Signer]) -> None:
    one, stolen, thief, friend = signers
    ring = Keyring.of([one.public, stolen.public])
    for by, key in ((stolen, thief), (thief, friend)):
        ring = ring.trust(by.public, key.public, "x", succeeds=False, now=NOW)
    revoked = ring.revoke(one.public, stolen.public)
    assert [accepts(revoked, key) for key in signers] == [True, False, False, False]
    by_friend = ring.revoke(friend.public, stolen.public)
    assert [accepts(by_friend, key) for key in signers] == [True, False, False, True]


def test_a_key_cannot_revoke_itself(signers: list[Signer]) -> None:
    with pytest.raises(KeyNotChanged):
        Keyring.of([signers[0].public]).revoke(signers[0].public, signers[0].public)


def test_a_login_says_what_a_key_succeeds(signers: list[Signer]) -> None:
    one, two, *_ = signers
    ring = Keyring.of([two.public], [PinnedKey(name="two", key=two.public, succeeds=one.public)])
    assert ring.may_control(two.public, one.public)
    assert not accepts(ring, one)


def test_keys_that_succeed_each_other_in_a_circle_end(signers: list[Signer]) -> None:
    one, two, three, _ = signers
    pins = [
        PinnedKey(name="one", key=one.public, succeeds=two.public),
        PinnedKey(name="two", key=two.public, succeeds=one.public),
    ]
    assert not Keyring.of([], pins).may_control(one.public, three.public)


def test_there_is_an_end_to_keys_and_rubbish_is_none(signers: list[Signer]) -> None:
    ring = Keyring.of([f"{number:064x}" for number in range(MOST_KEYS)])
    with pytest.raises(KeyNotChanged, match="200"):
        ring.trust(f"{0:064x}", signers[0].public, "more", succeeds=False, now=NOW)
    with pytest.raises(InvalidSetting):
        Keyring.of([signers[0].public]).trust(signers[0].public, "rubbish", "x", succeeds=False, now=NOW)
