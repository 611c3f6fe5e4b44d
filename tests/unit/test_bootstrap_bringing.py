"""What a login brings, by the real helper into a folder of this machine; and that what is set there stays."""

from __future__ import annotations

import stat
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from slurmbus import authority
from slurmbus.bootstrap import journal
from slurmbus.bootstrap.bringing import SETTINGS, Brought, Toml, bring, kept_apart
from slurmbus.bootstrap.journal import Journal
from slurmbus.bootstrap.login import Login
from slurmbus.bootstrap.session import Remote
from slurmbus.bootstrap.ssh import Master
from slurmbus.errors import LoginFailed, SiteUnfit
from slurmbus.home import Home
from slurmbus_agent.config import AgentSettings, load
from slurmbus_protocol.grants import DAY
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.signing import Signer

EDITED = """
watch_interval = 60.0
[limits]
cpu_minutes = 20
[retention]
succeeded_days = 3
lost_days = inf
"""


class Here(Master):
    """A login at this very machine."""

    def session(self, command: str | None, *, terminal: bool) -> subprocess.Popen[bytes]:  # noqa: ARG002
        assert command is not None
        pipe = subprocess.PIPE
        return subprocess.Popen(["/bin/sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe)


class Site:
    """A home with a site, and the folder to which its logins bring."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.home.add_site("a", ["tls://bus:4222"])
        self.there = folder / "there"
        self.before: Journal | None = None
        self.ended: list[tuple[Toml, Toml]] = []
        self._master = Here(Login(host="here"), folder / "socket", folder / "log")

    def login(self) -> Brought:
        with Remote(self._master) as remote:
            brought = bring(remote, self.home, "a", str(self.there), self.before, lambda *two: self.ended.append(two))
        self.before = Journal(
            site="a",
            host="here",
            install_folder="/x",
            version="1",
            config=brought.config,
            supervisor="detached",
            way="direct",
            servers=(),
            brought=brought.hashes,
        )
        journal.write(self.home, self.before)
        return brought

    @property
    def stands(self) -> bool:
        done = journal.read(self.home, "a")
        return done is not None and done.brought == authority.hashes(authority.files(self.home, "a"))

    def names(self) -> set[str]:
        return {path.name for path in self.there.iterdir()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    return Site(tmp_path)


def test_what_has_changed_here_doesnt_stand_there_until_it_is_brought(site: Site) -> None:
    assert not site.stands
    first = site.login()
    assert site.stands
    assert first.changes == ["a.toml went to the site"]
    assert load("a", Path(first.config)).servers == ("tls://bus:4222",)
    again = site.login()
    assert (again.changes, again.other_bundle, site.ended) == ([], False, [])

    stranger = Signer.generate().public
    for change in (
        {"trusted": (PinnedKey(name="bob", key=stranger),)},
        {"revoked": (stranger,)},
        {"scheduler": "commands"},
        {"spool": "/scratch/a"},
        {"nkey_seed": "SU"},
    ):
        site.home.change_site("a", **change)
        assert not site.stands, change
        brought = site.login()
        assert brought.other_bundle
        assert site.stands
    assert len(site.ended) == 5
    assert site.ended[3][0].get("spool") is None
    assert site.ended[3][1]["spool"] == "/scratch/a"


def test_a_policy_comes_and_goes_with_the_one_here(site: Site) -> None:
    site.login()
    written_there = site.there / "a.policy.toml"
    written_there.write_text("max_nodes = 2\n")
    site.login()
    assert written_there.read_text() == "max_nodes = 2\n"

    site.home.policy_path("a").write_text("max_nodes = 1\n")
    assert not site.stands
    brought = site.login()
    assert (brought.changes, brought.other_bundle) == (["a.policy.toml went to the site"], False)
    assert written_there.read_text() == "max_nodes = 1\n"
    site.home.policy_path("a").unlink()
    assert not site.stands
    assert site.login().changes == ["a.policy.toml was removed from the site"]
    assert not written_there.exists()


def test_a_login_that_breaks_leaves_nothing_to_go_by(site: Site, tmp_path: Path) -> None:
    """What is here and what was brought before are the same again, but nobody knows what lies there."""
    site.login()
    granted = site.home.grant_path("a").read_bytes()
    site.home.change_site("a", scheduler="commands")
    (site.there / "a.grant").unlink()
    (site.there / "a.grant").mkdir()  # so that this write fails, the last one
    with pytest.raises(SiteUnfit):
        site.login()
    assert site.home.grant_path("a").read_bytes() == granted, "what isn't there gives no authority"
    site.home.change_site("a", scheduler="auto")
    assert not site.stands


def test_a_connection_that_breaks_renews_nothing(site: Site) -> None:
    class Broken(Remote):
        def write(self, path: str, data: bytes, mode: int = 0o600) -> None:
            if path.endswith(".grant"):
                self._process.kill()
            super().write(path, data, mode)

    with Broken(site._master) as remote, pytest.raises(LoginFailed):
        bring(remote, site.home, "a", str(site.there), None, lambda _old, _new: None)
    assert not site.home.grant_path("a").exists()
    assert not authority.is_fresh(site.home, "a", None)


# ---------------------------------------------------------------------- what a user has set there


def test_settings_of_an_old_bundle_survive_beside_it(site: Site) -> None:
    first = site.login()
    bundle, settings = Path(first.config), site.there / "a.settings.toml"
    with bundle.open("a") as file:
        file.write(EDITED)
    before = load("a", bundle)
    settings.write_text("[retention]\nsucceeded_days = 5\nfailed_days = 9\n")
    site.home.change_site("a", scheduler="commands")
    brought = site.login()
    assert f"what was set by hand went to {settings}, which nobody else writes" in brought.changes
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    after = load("a", bundle)
    assert after.scheduler == "commands"
    assert (after.watch_interval, after.limits) == (60.0, before.limits)
    kept = after.retention
    assert (kept.succeeded_days, kept.failed_days, kept.lost_days) == (5, 9, float("inf"))

    written = settings.read_bytes()
    site.home.change_site("a", scheduler="auto")
    site.login()
    assert settings.read_bytes() == written


def test_an_old_bundle_that_cant_be_read_is_left_alone(site: Site) -> None:
    bundle = Path(site.login().config)
    bundle.write_text("[limits\ncpu_minutes = 20\n")
    with pytest.raises(SiteUnfit, match=r"a\.toml can't be read") as caught:
        site.login()
    assert "mend it there" in (caught.value.hint or "")
    assert bundle.read_text() == "[limits\ncpu_minutes = 20\n"


def test_what_the_new_bundle_says_isnt_set_by_hand() -> None:
    assert AgentSettings.__struct_fields__ == SETTINGS
    old = tomllib.loads(f"servers = ['x']\nca_file = '/x'{EDITED}")
    assert kept_apart(old, old, {}) == {}
    assert kept_apart(old, {"limits": {"cpu_minutes": 1}, "watch_interval": 2.0}, {}) == {"retention": old["retention"]}
    assert kept_apart({"servers": ["x"]}, {}, {"log_format": "json"}) == {"log_format": "json"}


# ---------------------------------------------------------------------- until when


def test_authority_is_fresh_until_half_of_what_the_agent_gives_is_over(site: Site) -> None:
    assert not authority.is_fresh(site.home, "a", None)
    now = time.time()
    grant = authority.issue(site.home, "a")
    authority.keep(site.home, "a", msgspec.structs.replace(grant, issued_at=now - 0.6 * DAY))
    assert authority.is_fresh(site.home, "a", None)
    assert authority.is_fresh(site.home, "a", now + 30 * DAY)
    assert authority.is_fresh(site.home, "a", now + 0.7 * DAY)
    assert not authority.is_fresh(site.home, "a", now + 0.4 * DAY), "a centre's policy gives one day"
    assert not authority.is_fresh(site.home, "a", now - 1.0)
    assert not authority.is_fresh(site.home, "a", 0.0)
