"""Keys are replaced, revoked and trusted while the agent runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.agent_site import SITE
from contract.authority_site import Guarded, guarded_site
from contract.bus_site import wait_until
from contract.test_authority import waiting
from slurmbus import keys
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.embedded import public_key
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.states import JobState


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_site(tmp_path_factory.mktemp("guarded")) as site:
        yield site


def test_a_replaced_key_passes_its_jobs_on(guarded: Guarded, tmp_path: Path) -> None:
    """The old client goes on for a day; the new key may cancel what the old one submitted."""
    home, go = guarded.site.home, tmp_path / "go"
    before = guarded.heartbeat().agent_id
    key = guarded.client.submit(waiting(go))
    guarded.wait_for_state(key, JobState.RUNNING)
    new = keys.rotate(home, guarded.client)
    assert {one.key: one.retires_at is not None for one in keys.known(guarded.client)} == {
        guarded.client.connection.session.signer.public: True,
        new: False,
    }
    assert guarded.run().state is JobState.COMPLETED
    settings = ConnectionSettings.of_site(home, SITE)
    assert settings != guarded.client.connection.settings
    with guarded.connected(settings) as successor:
        assert successor.connection.session.signer.public == new
        successor.cancel(key)
        guarded.wait_for_state(key, JobState.CANCELLED)
        assert guarded.run(client=successor).state is JobState.COMPLETED
        wait_until(lambda: guarded.heartbeat().agent_id != before, "the agent to take the new bundle")
        wait_until(lambda: guarded.run(client=successor).state is JobState.COMPLETED, "the agent that began anew")
    assert any(line["what"] == "trust-key" and line["key"] == new for line in guarded.audit())


def test_a_revoked_key_counts_no_more_at_once_and_for_ever(guarded: Guarded) -> None:
    """Over the bus, signed by another one, which had it brought in; neither a login nor a friend brings it back."""
    home, thief, friend = guarded.site.home, Signer.generate(), Signer.generate()
    path = guarded.folder / "thief.key"
    thief.save(path)
    settings = ConnectionSettings.of_site(home, SITE)
    with guarded.connected(settings) as client:
        keys.trust(client, thief.public, "thief")
        with guarded.connected(replace(settings, signing_key=path)) as theirs:
            assert guarded.run(client=theirs).state is JobState.COMPLETED
            keys.trust(theirs, friend.public, "friend")
            with pytest.raises(SlurmbusError, match="can't revoke itself"):
                keys.revoke(theirs, thief.public)
            keys.revoke(client, thief.public)
            record = guarded.run(client=theirs)
            assert (record.state, record.error_code) == (JobState.REJECTED, "bad-signature")
            assert "revoked" in (record.reason or "")
            with pytest.raises(SlurmbusError, match="revoked"):
                keys.trust(theirs, Signer.generate().public, "another")
        ends = {one.key: one.revoked for one in keys.known(client)}
        assert ends[thief.public]
        assert ends[friend.public]
        with pytest.raises(SlurmbusError, match="can't come back"):
            keys.trust(client, thief.public, "thief")
    assert any(line["what"] == "revoke-key" and line["key"] == thief.public for line in guarded.audit())


def test_the_agent_s_bus_key_is_replaced_without_losing_touch(guarded: Guarded) -> None:
    """The bus knows both until the agent has taken the new one; afterwards the old one is refused."""
    home = guarded.site.home
    before, old = guarded.heartbeat().agent_id, home.site(SITE).agent_nkey
    profile = keys.rotate_agent(home, SITE)
    guarded.site.owner.look()
    assert profile.agent_nkey != old
    assert {user.nkey for user in home.bus_users()} >= {old, profile.agent_nkey}
    wait_until(lambda: guarded.heartbeat().agent_id != before and guarded.heartbeat().leader, "another agent", 60)
    keys.finish_agent(home, SITE)
    guarded.site.owner.look()
    assert old not in {user.nkey for user in home.bus_users()}
    settings = ConnectionSettings.of_site(home, SITE)
    with guarded.connected(settings) as client:
        wait_until(lambda: guarded.run(client=client).state is JobState.COMPLETED, "the agent with its new key")
    assert public_key(home.bundle_path(SITE).read_text().split('nkey_seed = "')[1].split('"')[0]) == profile.agent_nkey
