"""Until when an agent has authority, and what ends it: with a clock that the test sets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slurmbus_agent import audit
from slurmbus_agent.audit import Audit
from slurmbus_agent.authority.files import AuthorityFiles
from slurmbus_agent.authority.keyring import RETIRES_AFTER, Keyring
from slurmbus_agent.authority.standing import Authority, AuthorityExpired, NotYours, renew_by_hand
from slurmbus_agent.config import load
from slurmbus_protocol import grants
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.grants import DAY, GrantNotAccepted
from slurmbus_protocol.messages import CommandPlan, JobSpec, Submit
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.subjects import new_ulid

NOW = 1_800_000_000.0
SUBMIT = Submit(
    key=new_ulid(),
    site="a",
    expires_at=NOW,
    submitter="alice@laptop",
    job=JobSpec(name="job", plan=CommandPlan(argv=("true",))),
)


class Clock:
    """A time that is set."""

    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def signer() -> Signer:
    return Signer.generate()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[[], Authority]


@pytest.fixture
def make(tmp_path: Path, signer: Signer, clock: Clock) -> Make:
    """Makes an authority of a bundle that was copied at NOW."""
    for name in ("config", "etc", "spool"):
        (tmp_path / name).mkdir()
    bundle = tmp_path / "config" / "a.toml"
    bundle.write_text(f'site = "a"\nservers = ["tls://h:1"]\ntrusted_keys = ["{signer.public}"]\n')
    bundle.chmod(0o600)
    os.utime(bundle, (NOW, NOW))
    files = AuthorityFiles("a", bundle, tmp_path / "spool", tmp_path / "etc", os.getuid())

    def build() -> Authority:
        made = Authority(load("a", bundle), files, Audit(tmp_path / "spool" / "audit.log"), clock)
        made.load()
        return made

    return build


def allows(authority: Authority, signer: Signer) -> bool:
    try:
        authority.check_submit(SUBMIT, signer.public, lambda: 0)
    except AuthorityExpired:
        return False
    return True


def test_a_bundle_that_was_copied_counts_for_seven_days_and_can_be_renewed(
    make: Make, signer: Signer, clock: Clock
) -> None:
    authority = make()
    assert authority.alarms == ()
    clock.now += 6.5 * DAY
    assert allows(authority, signer)
    assert "authority ends in 12.0 h" in authority.alarms[0]
    clock.now += DAY
    assert not allows(authority, signer)
    renew_by_hand(load("a", authority.files.bundle), authority.files)
    clock.now = authority.files.bundle.stat().st_mtime
    authority.load()
    assert allows(authority, signer)


def test_a_grant_counts_instead_and_is_renewed_by_its_signer_only(make: Make, signer: Signer, clock: Clock) -> None:
    authority = make()
    authority.files.grant.write_bytes(grants.write(grants.issue(signer, "a", "alice@laptop", 2, now=NOW)))
    authority.load()
    clock.now += 1.9 * DAY
    assert allows(authority, signer)
    clock.now += DAY
    assert not allows(authority, signer)
    with pytest.raises(GrantNotAccepted, match="signed grant"):
        renew_by_hand(load("a", authority.files.bundle), authority.files)
    authority.files.grant.write_bytes(grants.write(grants.issue(Signer.generate(), "a", "mallory", now=clock.now)))
    authority.load()
    assert not allows(authority, signer)


def test_the_stricter_policy_shortens_it(make: Make, signer: Signer, clock: Clock) -> None:
    authority = make()
    authority.files.policy.write_text("authority_days = 3\n")
    authority.files.site_policy.write_text("authority_days = 1\n")
    authority.load()
    assert authority.expires_at == NOW + DAY
    authority.files.site_policy.write_text("require_grant = true\n")
    authority.load()
    assert not allows(authority, signer)
    authority.files.grant.write_bytes(grants.write(grants.issue(signer, "a", "alice@laptop", 30, now=NOW)))
    authority.load()
    assert authority.expires_at == NOW + 3 * DAY
    assert allows(authority, signer)


def test_a_bundle_from_the_future_gives_no_authority(make: Make, signer: Signer) -> None:
    authority = make()
    os.utime(authority.files.bundle, (NOW + 30 * DAY, NOW + 30 * DAY))
    authority.load()
    assert not allows(authority, signer)


def test_a_replaced_key_s_grant_goes_on_and_a_revoked_one_s_ends(make: Make, signer: Signer, clock: Clock) -> None:
    authority, new = make(), Signer.generate()
    authority.files.grant.write_bytes(grants.write(grants.issue(signer, "a", "alice@laptop", now=NOW)))
    ring = authority.ring.trust(signer.public, new.public, "new", succeeds=True, now=NOW)
    keep(authority, ring)
    clock.now += RETIRES_AFTER + 1
    authority.load()
    assert allows(authority, new)
    keep(authority, authority.ring.revoke(new.public, signer.public))
    authority.load()
    assert not allows(authority, new)


def keep(authority: Authority, ring: Keyring) -> None:
    asyncio.run(authority.change_keys(ring))


def test_what_is_known_of_keys_is_never_ignored(make: Make) -> None:
    authority = make()
    authority.files.keys.write_text("{")
    with pytest.raises(InvalidSetting, match="revoked"):
        authority.load()


def test_both_policies_have_to_say_that_every_key_may_control(make: Make, signer: Signer) -> None:
    authority, other = make(), Signer.generate().public
    authority.check_control(signer.public, signer.public)
    with pytest.raises(NotYours):
        authority.check_control(other, signer.public)
    authority.files.policy.write_text('control = "trusted"\n')
    authority.load()
    authority.check_control(other, signer.public)
    authority.files.site_policy.write_text('control = "signer"\n')
    authority.load()
    with pytest.raises(NotYours):
        authority.check_control(other, signer.public)


def test_the_audit_log_is_rotated_without_losing_a_line(tmp_path: Path) -> None:
    """Two agents write to it; the oldest files go when there are too many."""
    path = tmp_path / "audit.log"
    logs = [Audit(path, limit=1000, kept=100), Audit(path, limit=1000, kept=100)]
    for number in range(300):
        logs[number % 2].write("accepted", number=number)
    assert sorted(line["number"] for line in audit.lines(path)) == list(range(300))
    assert all(file.stat().st_size < 1200 for file in tmp_path.iterdir())
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())
    Audit(path, limit=1, kept=3).write("accepted", number=300)
    assert len(list(tmp_path.glob("audit-*.log"))) == 3
