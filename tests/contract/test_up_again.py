"""Running `slurmbus up` again at a site that stands: a real agent on a real bus says whether somebody has to log in.

Nobody can log in at this site: its `before_login` fails. So whatever wants a login says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import SITE
from contract.authority_site import Guarded, guarded_site
from contract.bus_site import wait_until
from slurmbus import authority, keys
from slurmbus.bootstrap import journal, wheels
from slurmbus.bootstrap.chain import Chain, Finding, Grade
from slurmbus.bootstrap.journal import Journal
from slurmbus.bootstrap.keeper import Quiet
from slurmbus.bootstrap.login import Login
from slurmbus.bootstrap.up import Up, Wishes
from slurmbus.errors import LoginFailed
from slurmbus_protocol import grants
from slurmbus_protocol.grants import DAY
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.states import JobState

LOGIN = Login(host="nowhere.invalid", before_login="false")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_site(tmp_path_factory.mktemp("again")) as site:
        site.site.home.change_site(SITE, login=LOGIN)
        yield site


def bring(site: Guarded, days_ago: float = 0.0) -> None:
    """Leave what a login leaves. The agent goes by the home's own files, so they are at the site already."""
    home = site.site.home
    grant = grants.issue(site.signer, SITE, "alice@laptop", now=time.time() - days_ago * DAY)
    authority.keep(home, SITE, grant)
    done = Journal(
        site=SITE,
        host="nowhere",
        install_folder="/nowhere",
        version="1",
        source=wheels.source_hash(),
        config=str(home.bundle_path(SITE)),
        supervisor="detached",
        way="direct",
        servers=(),
        login=LOGIN,
        brought=authority.hashes(authority.files(home, SITE)),
    )
    journal.write(home, done)


def wants_a_login(site: Guarded) -> bool:
    try:
        return Up(site.site.home, SITE, Wishes(batch=True), Quiet()).run().logged_in
    except LoginFailed:
        return True


def authority_of(site: Guarded) -> Finding:
    return next(one for one in Chain(site.site.home, SITE).from_here() if one.what == "authority")


def test_a_policy_that_gives_less_authority_wants_a_login_in_time(guarded: Guarded) -> None:
    """The login left a grant of seven days; the agent goes by the policy, and is believed."""
    bring(guarded, days_ago=0.6)
    assert authority_of(guarded).grade is Grade.FINE
    assert not wants_a_login(guarded)
    with guarded.policy("authority_days = 1\n"):
        bring(guarded, days_ago=0.1)
        wait_until(lambda: authority_of(guarded).grade is Grade.NOTE, "the policy to be read")
        assert not wants_a_login(guarded)
        bring(guarded, days_ago=0.6)
        wait_until(lambda: wants_a_login(guarded), "more than half of the authority to be over")
        assert guarded.run().state is JobState.COMPLETED

        bring(guarded, days_ago=1.5)
        wait_until(lambda: authority_of(guarded).grade is Grade.BROKEN, "the end of the authority")
        found = authority_of(guarded)
        assert "takes no more requests" in found.words
        assert found.hint == f"a login renews it: slurmbus up {SITE}"
        assert guarded.run().error_code == "authority-expired"
        assert wants_a_login(guarded)
    bring(guarded)
    wait_until(lambda: guarded.run().state is JobState.COMPLETED, "the policy to be forgotten")


def test_whatever_is_to_be_brought_wants_a_login(guarded: Guarded) -> None:
    home = guarded.site.home
    bring(guarded)
    assert not wants_a_login(guarded)
    stranger = Signer.generate().public
    with guarded.policy("max_nodes = 1\n"):
        assert wants_a_login(guarded)
    guarded.pin(PinnedKey(name="bob", key=stranger))
    assert wants_a_login(guarded)
    bring(guarded)
    keys.revoke_by_login(home, SITE, stranger)
    assert wants_a_login(guarded)
    bring(guarded)
    assert not wants_a_login(guarded)


def test_what_a_user_sets_beside_the_bundle_is_taken_by_the_running_agent(guarded: Guarded) -> None:
    """And stays when the bundle is written anew."""
    settings: Path = guarded.beside_bundle("settings.toml")

    def memory_limit() -> float | None:
        budgets = guarded.heartbeat().vitals.budgets
        return next((budget.limit for budget in budgets if budget.name == "memory"), None)

    settings.write_text("[limits]\nmemory_mib = 300\n")
    wait_until(lambda: memory_limit() == 300 * 2**20, "the limit that was set", 60.0)
    guarded.pin(PinnedKey(name="carol", key=Signer.generate().public))
    wait_until(lambda: memory_limit() == 300 * 2**20, "the limit that was set")

    agent = guarded.heartbeat().agent_id
    settings.write_text("[limits]\nmemory = 300\n")
    wait_until(lambda: guarded.run().state is JobState.REJECTED, "the mistake to be seen")
    assert "settings.toml" in (guarded.run().reason or "")
    settings.write_text("[limits]\nmemory_mib = 300\n")
    wait_until(lambda: guarded.run().state is JobState.COMPLETED, "the settings to be read again")
    assert guarded.heartbeat().agent_id == agent
