"""Folders on the login node: real ones, some of which belong to other users or can be written by them."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurmbus.bootstrap.remote import helper, probe

OTHER = 4711
"""A user that isn't there."""
WORDS = "who could put other programs in the place of yours"


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let a path belong to another user; who isn't root can't, and takes themselves for another one."""

    def give(path: Path) -> None:
        if os.getuid() == 0:
            os.chown(path, OTHER, OTHER, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "getuid", lambda: OTHER)

    return give


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can enter; pytest's own ones are shut, and what lies in those is safe."""
    folder = Path(tempfile.mkdtemp(prefix="slurmbus-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def make(path: Path, mode: int = 0o755) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path


def test_a_folder_is_made_for_its_user_alone(place: Path) -> None:
    helper.folder(str(place / "a" / "b"), mode=0o750)
    helper.folder(str(place / "a" / "b"))
    assert (place / "a").stat().st_mode & 0o777 == 0o700
    assert (place / "a" / "b").stat().st_mode & 0o777 == 0o750
    assert probe.unsafe(str(place / "a" / "b" / "missing" / "too")) == ""


@pytest.mark.parametrize("below", ["", "alice", "alice/slurmbus-agent/versions"])
def test_below_somebody_else_s_folder_nothing_is_made(
    place: Path, give_away: Callable[[Path], None], below: str
) -> None:
    """However open or shut it is: its owner may rename what lies in it."""
    theirs = make(place / "theirs")
    if below:
        make(theirs / below)
    give_away(theirs)
    with pytest.raises(PermissionError, match=f"belongs to .*{WORDS}; choose another folder"):
        helper.folder(str(theirs / below / "new"))
    with pytest.raises(PermissionError, match=WORDS):
        helper.room(str(theirs / below / "new"), 1)
    with pytest.raises(PermissionError, match=WORDS):
        helper.folder(str(theirs / below / "new" / "version"), new=True)
    with pytest.raises(PermissionError, match=WORDS):
        helper.private_folder([str(theirs / below / "new")])
    assert not (theirs / below / "new").exists()
    assert WORDS in probe.unsafe(str(theirs / below / "new"))


@pytest.mark.parametrize("mode", [0o777, 0o757, *([0o775] if os.getuid() == 0 else [])])  # root gives it to a group
def test_below_a_folder_that_others_can_write_nothing_is_made(place: Path, mode: int) -> None:
    """The user's own, but others may rename what lies in it; a group counts unless it is the user's alone."""
    open_one = make(place / "open")
    make(open_one / "mine")
    if os.getuid() == 0:
        os.chown(open_one, 0, OTHER)
    open_one.chmod(mode)
    with pytest.raises(PermissionError, match=f"written by others, {WORDS}; chmod go-w {open_one}") as caught:
        helper.folder(str(open_one / "mine" / "new"))
    assert caught.value.filename == str(open_one)
    open_one.chmod(0o755)
    helper.folder(str(open_one / "mine" / "new"))
    assert (open_one / "mine" / "new").is_dir()


def test_in_a_sticky_folder_only_what_is_ones_own_counts(place: Path, give_away: Callable[[Path], None]) -> None:
    sticky = make(place / "scratch", 0o1777)
    helper.folder(str(sticky / "alice" / "slurmbus-agent"))
    assert probe.unsafe(str(sticky / "alice")) == ""
    give_away(sticky / "alice")
    assert WORDS in probe.unsafe(str(sticky / "alice" / "slurmbus-agent"))
    with pytest.raises(PermissionError, match=WORDS):
        helper.folder(str(sticky / "alice" / "slurmbus-agent"))


def test_what_others_cannot_enter_may_have_any_mode_inside(place: Path) -> None:
    shut = make(place / "home", 0o700)
    make(shut / ".config", 0o777)
    helper.folder(str(shut / ".config" / "slurmbus"))
    shut.chmod(0o711)
    with pytest.raises(PermissionError, match=WORDS):
        helper.folder(str(shut / ".config" / "slurmbus"))


def test_a_symlink_is_followed_under_the_same_rules(place: Path, give_away: Callable[[Path], None]) -> None:
    """Into a folder that others can write; out of one again; in a ring; and one that is somebody else's."""
    make(place / "good")
    make(place / "open" / "inner")
    (place / "open").chmod(0o777)
    (place / "to-good").symlink_to("good/../good")
    (place / "to-open").symlink_to(place / "open" / "inner")
    (place / "ring").symlink_to("ring")
    helper.folder(str(place / "to-good" / "new"))
    assert (place / "good" / "new").is_dir()
    with pytest.raises(PermissionError, match=WORDS):
        helper.folder(str(place / "to-open" / "new"))
    with pytest.raises(OSError, match="symbolic links"):
        helper.folder(str(place / "ring" / "new"))
    give_away(place / "to-good")
    with pytest.raises(PermissionError, match=WORDS):
        helper.folder(str(place / "to-good" / "other"))


def test_what_lies_above_the_home_is_not_judged_but_a_way_out_of_it_is(
    place: Path, give_away: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Homes lie below folders of a project's head or of a service's user; those have the account anyway."""
    above = make(place / "above")
    home, beside = make(above / "alice"), make(above / "beside")
    user = pwd.getpwuid(os.getuid())
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: pwd.struct_passwd((*user[:5], str(home), user[6])))
    (home / "out").symlink_to("../beside")
    (home / "far").symlink_to(beside)
    (home / "in").symlink_to(home / "new")
    if os.getuid() == 0:
        give_away(above)
    else:
        above.chmod(0o777)
    helper.folder(str(home / "new"))
    helper.folder(str(home / "in" / "inner"))
    assert (home / "new" / "inner").is_dir()
    for way in ("out", "far"):
        with pytest.raises(PermissionError, match=WORDS):
            helper.folder(str(home / way / "new"))
    assert not list(beside.iterdir())
    home.chmod(0o777)
    with pytest.raises(PermissionError, match=WORDS):
        helper.folder(str(home / "other"))


@pytest.mark.parametrize("path", ["relative", "/tmp/../etc"])
def test_a_path_is_taken_as_it_is_written_or_not_at_all(path: str) -> None:
    with pytest.raises(OSError, match="no plain absolute path"):
        helper.folder(path)


def test_no_program_is_tried_where_others_could_swap_it(
    place: Path, give_away: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(probe, "runs_programs", lambda path: bool(tried.append(path)) or True)
    user = probe.pwd.getpwuid(os.getuid())
    ours, theirs = make(place / "ours"), make(place / "theirs", 0o777)
    found = probe.place("$SCRATCH", str(ours), user)
    assert (found["own"], found["unsafe"], tried) == (True, "", [str(ours)])
    give_away(theirs)
    found = probe.place("scratch", str(theirs), user)
    assert found["unsafe"]
    assert tried == [str(ours)]
