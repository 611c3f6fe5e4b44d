"""Removing job folders: never anything outside, whatever lies in the way, whenever it is interrupted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slurmbus_agent.spool import Spool, SpoolUnusable
from slurmbus_agent.spool_removal import Steps, Stopped
from slurmbus_protocol.subjects import new_ulid

KEY = new_ulid()
ULID = "01M8JD37DSNE29FWH6EFRP7BTN"  # always the same: it names tests
FILES = ("request", "record", "plan.json", "0.stdout", "0.stderr", "0.messages", "0.report", "work/out/big", "starts/0")


def no_pause() -> None:
    pass


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    one = Spool(tmp_path / "spool")
    one.prepare()
    return one


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "file").write_text("mine")
    return folder


def make_job(spool: Spool, key: str | None = None) -> str:
    key = key or new_ulid()
    folder = spool.job(key, 0).path
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("starts/"):
            (folder / name).symlink_to("7:c1:nonce:1")
        else:
            (folder / name).write_text(name)
    return key


def is_whole(folder: Path) -> bool:
    return all(os.path.lexists(folder / name) for name in FILES)


def forget(spool: Spool, key: str, pace: Callable[[], None] = no_pause) -> list[str]:
    spool.forget(key, 0)
    return [obstacle.path for obstacle in spool.remove_forgotten(key, 0, pace)]


def nothing_left(spool: Spool) -> bool:
    return not any(any((spool.root / name).iterdir()) for name in ("jobs", "forgotten", "trash"))


def test_a_job_goes_out_of_sight_whole_and_then_away(spool: Spool) -> None:
    key = make_job(spool)
    assert spool.forget(key, 0)
    assert spool.keys() == []
    assert spool.forgotten() == [(key, 0)]
    assert is_whole(spool.root / "forgotten" / f"{key}.0")
    assert not spool.forget(key, 0)
    assert spool.remove_forgotten(key, 0, no_pause) == []
    assert spool.remove_forgotten(key, 0, no_pause) == []
    assert nothing_left(spool)


def test_symlinks_are_removed_and_not_followed(spool: Spool, precious: Path) -> None:
    key = make_job(spool)
    work = spool.job(key, 0).path / "work"
    (work / "folder").symlink_to(precious)
    (work / "file").symlink_to(precious / "file")
    (work / "up").symlink_to("../../..")
    os.link(precious / "file", work / "hard")
    assert forget(spool, key) == []
    assert nothing_left(spool)
    assert (precious / "file").read_text() == "mine"


def test_a_job_folder_that_is_a_symlink_is_no_job(spool: Spool, precious: Path) -> None:
    key = new_ulid()
    spool.job(key, 0).path.symlink_to(precious)
    assert spool.folders() == ([], [f"{key}.0"])
    assert forget(spool, key) == []  # even when somebody asks for it: the symlink goes, and nothing else
    assert (precious / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["..", "x", "01J.0.0", ULID, f"{ULID}.00", f"{ULID}.-1", ".a b\n"])
def test_strange_names_are_told_and_left_alone(spool: Spool, name: str) -> None:
    if name != "..":
        (spool.root / "jobs" / name).mkdir()
        assert spool.folders() == ([], [name])


@pytest.mark.parametrize("folder", ["jobs", "forgotten", "trash"])
def test_nothing_behind_a_symlink_is_touched(spool: Spool, tmp_path: Path, folder: str) -> None:
    key = make_job(spool)
    elsewhere = tmp_path / "elsewhere"
    (spool.root / folder).rename(elsewhere)
    (elsewhere / "mine").mkdir()
    (spool.root / folder).symlink_to(elsewhere)
    for attempt in (
        lambda: spool.forget(key, 0),
        lambda: spool.remove_forgotten(key, 0, no_pause),
        lambda: spool.empty_trash(no_pause),
    ):
        with contextlib.suppress(SpoolUnusable):
            attempt()
    assert (elsewhere / "mine").is_dir()
    if folder == "jobs":
        assert is_whole(elsewhere / f"{key}.0")


def test_names_that_are_no_text_and_fifos_and_sockets(spool: Spool) -> None:
    key = make_job(spool)
    work = os.fsencode(spool.job(key, 0).path / "work")
    for name in (b"\xff\xfe", b"-rf", b"a\nb", b"*", b"\\", b"x" * 255):
        Path(os.fsdecode(work + b"/" + name)).write_text("")
    os.mkfifo(os.fsdecode(work + b"/pipe"))
    assert forget(spool, key) == []
    assert nothing_left(spool)


def test_folders_deeper_than_any_path_may_be_long(spool: Spool) -> None:
    key = make_job(spool)
    at = os.open(spool.job(key, 0).path / "work", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deeper-and-deeper", dir_fd=at)
        below = os.open("deeper-and-deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    before = len(os.listdir("/proc/self/fd"))
    assert forget(spool, key) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert nothing_left(spool)


def test_many_files_in_one_folder(spool: Spool) -> None:
    key = make_job(spool)
    for number in range(3500):
        (spool.job(key, 0).path / "work" / str(number)).touch()
    assert forget(spool, key) == []
    assert nothing_left(spool)


NOT_ALMIGHTY = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
class Header(ctypes.Structure): _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
class Data(ctypes.Structure): _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]
if libc.capset(ctypes.byref(Header(0x20080522, 0)), (Data * 2)()): sys.exit(77)
"""
"""Take root's powers over other people's files away from the process: it is an owner like any other then."""


def as_an_ordinary_user(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", NOT_ALMIGHTY + script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORGET = """
from pathlib import Path
from slurmbus_agent.spool import Spool
spool = Spool(Path(sys.argv[1]))
for key in sys.argv[2:]:
    spool.forget(key, 0)
    for obstacle in spool.remove_forgotten(key, 0, lambda: None):
        print(obstacle.path.partition("/trash/")[2].partition("/")[2], obstacle.reason, sep=": ")
"""


def test_folders_whose_owner_may_not_write_are_put_right(spool: Spool) -> None:
    key = make_job(spool)
    work = spool.job(key, 0).path / "work"
    (work / "deep" / "deeper").mkdir(parents=True)
    (work / "deep" / "deeper" / "file").touch(0o000)
    for path, mode in ((work / "deep" / "deeper", 0o000), (work / "deep", 0o500), (work, 0o400), (work.parent, 0o500)):
        path.chmod(mode)
    assert as_an_ordinary_user(FORGET, spool.root, key) == ""
    assert nothing_left(spool)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of somebody else")
def test_what_belongs_to_somebody_else_stays_and_the_others_go(spool: Spool) -> None:
    one, other = make_job(spool), make_job(spool)
    theirs = spool.job(one, 0).path / "work" / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    os.chown(theirs, 12345, 12345)
    said = as_an_ordinary_user(FORGET, spool.root, one, other)
    assert said.splitlines() == ["work/theirs/file: Permission denied"]
    (left,) = (spool.root / "trash").iterdir()
    assert left.name.startswith(f"{one}.0.")
    assert [path.name for path in left.iterdir()] == ["work"]
    assert [path.name for path in (left / "work").iterdir()] == ["theirs"]
    assert spool.empty_trash(no_pause) == (1, [])  # root may
    assert nothing_left(spool)


def test_another_file_system_is_not_entered(spool: Spool) -> None:
    key = make_job(spool)
    mounted = spool.job(key, 0).path / "work" / "mounted"
    mounted.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(mounted), b"tmpfs", 0, b"size=64k"):
        pytest.skip("mounting isn't allowed here")
    try:
        (mounted / "file").write_text("mine")
        spool.forget(key, 0)
        (obstacle,) = spool.remove_forgotten(key, 0, no_pause)
        assert "another file system" in obstacle.reason
        (left,) = (spool.root / "trash").iterdir()
        assert (left / "work" / "mounted" / "file").read_text() == "mine"
    finally:
        (left,) = (spool.root / "trash").iterdir()
        assert libc.umount2(os.fsencode(left / "work" / "mounted"), 0) == 0
    assert spool.empty_trash(no_pause) == (1, [])


def test_two_that_remove_at_once_do_not_disturb_each_other(spool: Spool) -> None:
    keys = [make_job(spool) for _ in range(100)]
    running = [
        subprocess.Popen([sys.executable, "-c", f"import sys\n{FORGET}", str(spool.root), *keys]) for _ in range(2)
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert nothing_left(spool)


def test_it_ends_at_any_step_and_is_finished_by_the_next(spool: Spool) -> None:
    for last in range(40):
        key = make_job(spool)
        steps = iter(range(last))

        def pace(steps: object = steps) -> None:
            if next(steps, None) is None:  # type: ignore[call-overload]
                raise Stopped

        spool.forget(key, 0)
        try:
            spool.remove_forgotten(key, 0, pace)
        except Stopped:
            assert spool.keys() == []
            assert spool.forgotten() == []
            removed, obstacles = spool.empty_trash(no_pause)
            assert (removed, obstacles) == (1, [])
        else:
            break
        assert nothing_left(spool)
    else:
        pytest.fail("it never came to its end")


def test_steps_stop_when_the_guard_closes_or_somebody_says_so() -> None:
    open_ = [True]
    steps = Steps(10_000, lambda: open_[0])
    steps()
    open_[0] = False
    with pytest.raises(Stopped):
        steps()
    steps = Steps(0.001)
    steps.stop()
    with pytest.raises(Stopped):
        steps()


def test_killed_at_random_moments_it_leaves_whole_jobs_or_trash(spool: Spool) -> None:
    chance = random.Random(3)
    killed = 0
    for _ in range(25):
        there = spool.keys()
        keys = [key for key, _ in there] + [make_job(spool) for _ in range(40 - len(there))]
        script = f"import sys\n{FORGET.replace('for key', 'print(flush=True)' + chr(10) + 'for key', 1)}"
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(spool.root), *keys], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        for folder in ("jobs", "forgotten"):
            assert all(is_whole(path) for path in (spool.root / folder).iterdir())
    assert killed
    for key, task in spool.forgotten():
        assert spool.remove_forgotten(key, task, no_pause) == []
    assert spool.empty_trash(no_pause)[1] == []
    assert all(is_whole(path) for path in (spool.root / "jobs").iterdir())
    left = spool.keys()
    for key, _ in left:
        assert forget(spool, key) == []
    assert nothing_left(spool)
