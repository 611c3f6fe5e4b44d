"""The folder of environments, and the lock of whoever installs one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurmbus_agent.audit import Audit
from slurmbus_agent.environments import lock as locks
from slurmbus_agent.environments.lock import InstallLock, is_dead
from slurmbus_agent.environments.service import Environments
from slurmbus_agent.environments.settings import EnvironmentSettings
from slurmbus_agent.environments.store import FILES, Info, Installation, Store
from slurmbus_agent.environments.tidying import LEFT_OVER, Tidying
from slurmbus_agent.retention import DAY, RetentionSettings
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.environments import EnvironmentFile, EnvironmentKind, Manifest
from slurmbus_protocol.errors import UnknownEnvironment

DIGEST = "ab" * 32
OTHER = "ab" * 12 + "cd" * 20
FILE = "12" * 32
MANIFEST = Manifest(
    kind=EnvironmentKind.WHEELS, files=(EnvironmentFile(name="x-1-py3-none-any.whl", sha256=FILE, size=3),)
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "environments")
    made.prepare()
    return made


def info(digest: str = DIGEST) -> Info:
    return Info(digest=digest, title="demo", kind="wheels", prefix="env", size=1, files=1)


def put(store: Store, digest: str = DIGEST) -> Installation:
    folder = store.begin(digest, MANIFEST)
    (folder / "env" / "bin").mkdir(parents=True)
    (folder / "env" / "bin" / "tool").write_text("x")
    for path in (folder / "env" / "bin", folder / "env"):
        path.chmod(0o555)
    return store.commit(folder, info(digest))


# ---------------------------------------------------------------------- the store


def test_an_attempt_becomes_visible_only_when_it_is_committed(store: Store) -> None:
    folder = store.begin(DIGEST, MANIFEST)
    assert store.find(DIGEST) is None
    assert store.all() == []
    installed = store.commit(folder, info())
    found = store.find(DIGEST)
    assert found is not None
    assert found.folder == installed.folder == folder
    assert (store.root / DIGEST[:20]).resolve() == folder
    assert [one.info.digest for one in store.all()] == [DIGEST]


def test_of_two_installations_the_first_one_stands(store: Store) -> None:
    first, second = store.root / "store" / f"{DIGEST[:20]}.1", store.root / "store" / f"{DIGEST[:20]}.2"
    for folder in (first, second):
        (folder / FILES).mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        stands = {one.folder for one in pool.map(lambda folder: store.commit(folder, info()), (first, second))}
    assert len(stands) == 1
    assert stands <= {first, second}
    assert set((store.root / "store").iterdir()) == stands


def test_the_whole_digest_counts(store: Store) -> None:
    put(store)
    assert OTHER[:20] == DIGEST[:20]
    assert store.find(OTHER) is None


def test_names_stand_for_the_one_that_got_them_last(store: Store) -> None:
    put(store)
    put(store, "cd" * 32)
    store.name(DIGEST, "train")
    assert store.resolve("train").info.digest == DIGEST
    store.name("cd" * 32, "train")
    assert store.resolve("train").info.digest == "cd" * 32
    assert store.resolve("abababab").info.digest == DIGEST
    assert store.names() == {"cd" * 10: ["train"]}
    for unknown in ("ab", "ababac00", "nothing"):
        with pytest.raises(UnknownEnvironment):
            store.resolve(unknown)


def test_a_name_cant_lead_outside(store: Store) -> None:
    from slurmbus_protocol.errors import InvalidSetting

    put(store)
    for name in ("../store", "a/b", "", ".hidden", "A"):
        with pytest.raises(InvalidSetting):
            store.name(DIGEST, name)


def test_what_an_interrupted_attempt_fetched_is_used_again(store: Store) -> None:
    dead = store.begin(DIGEST, MANIFEST)
    (dead / FILES / FILE).write_bytes(b"abc")
    folder = store.begin(DIGEST, MANIFEST)
    assert (folder / FILES / FILE).read_bytes() == b"abc"
    assert not dead.exists()


def test_a_removed_one_is_gone_at_once_and_its_files_later(store: Store) -> None:
    installed = put(store)
    store.name(DIGEST, "train")
    store.remove(installed)
    assert store.find(DIGEST) is None
    assert store.names() == {}
    assert not installed.folder.exists()
    assert store.empty_trash(lambda: None) == []
    assert list((store.root / "trash").iterdir()) == []


def test_left_overs_of_attempts_go_after_a_while(store: Store) -> None:
    kept, old = put(store), store.begin("cd" * 32, MANIFEST)
    fresh = store.begin("ef" * 32, MANIFEST)
    os.utime(old, (0, 0))
    os.utime(kept.folder, (0, 0))
    store.tidy(LEFT_OVER)
    assert kept.folder.exists()
    assert fresh.exists()
    assert not old.exists()


# ---------------------------------------------------------------------- who may go


def tidying(store: Store, users: Callable[[Installation], list[str]], days: float = 30.0) -> Tidying:
    environments = Environments(Bus(BusSettings(servers=())), store, EnvironmentSettings(), lambda *_: None)
    settings = RetentionSettings(environments_days=days)
    return Tidying(
        environments, settings, users=users, guard=lambda: True, audit=Audit(store.root.parent / "audit.log")
    )


def test_unused_ones_are_removed_and_used_ones_never(store: Store) -> None:
    for digest in (DIGEST, "cd" * 32, "ef" * 32):
        installed = put(store, digest)
        age = 10 if digest == "ef" * 32 else 31
        os.utime(installed.folder / "info.json", (time.time() - age * DAY,) * 2)

    async def tidy() -> None:
        used = lambda one: ["KEY"] if one.info.digest == DIGEST else []  # noqa: E731
        await tidying(store, used).tidy(lambda: None)

    asyncio.run(tidy())
    left = {one.info.digest: one.used_at for one in store.all()}
    assert set(left) == {DIGEST, "ef" * 32}
    assert time.time() - left[DIGEST] < DAY  # whoever shares the folder sees that it is used
    assert '"environment removed"' in (store.root.parent / "audit.log").read_text()


def test_one_that_a_job_begins_to_use_isnt_removed(store: Store) -> None:
    installed = put(store)

    async def remove() -> bool:
        return await tidying(store, lambda _: ["KEY"]).remove(installed, "somebody asked for it")

    assert not asyncio.run(remove())
    assert store.find(DIGEST) is not None


# ---------------------------------------------------------------------- the lock


def test_one_holds_the_lock(tmp_path: Path) -> None:
    one, other = InstallLock(tmp_path / "x.lock"), InstallLock(tmp_path / "x.lock")
    assert one.take()
    assert one.take()  # NFS may repeat our own call
    assert not other.take()
    other.release()
    assert not other.take()
    one.release()
    assert other.take()


def test_of_many_that_take_it_at_once_one_holds_it(tmp_path: Path) -> None:
    everybody = [InstallLock(tmp_path / "x.lock") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(InstallLock.take, everybody)) == 1


def test_a_holder_shows_that_it_lives(tmp_path: Path) -> None:
    lock = InstallLock(tmp_path / "x.lock")
    lock.take()
    before = lock.holder()
    lock.renew()
    assert lock.holder() != before
    assert lock.holder() is not None
    assert not is_dead(str(lock.holder()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.lock"]


def test_a_killed_holder_is_known_to_be_dead(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from slurmbus_agent.environments.lock import InstallLock;"
        "InstallLock(Path(sys.argv[1])).take(); print('held', flush=True); time.sleep(600)"
    )
    path = tmp_path / "x.lock"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        mine = InstallLock(path)
        holder = mine.holder()
        assert holder is not None
        assert not is_dead(holder)
        process.kill()
    assert is_dead(holder)
    mine.break_(holder)
    assert mine.take()


def test_nobody_can_tell_whether_another_hosts_process_lives(tmp_path: Path) -> None:
    assert not is_dead("login9/boot/1:4242:99:nonce:7")
    assert locks.host("login9/boot/1:4242:99:nonce:7") == "login9"


def test_breaking_a_lock_spares_whoever_took_it_meanwhile(tmp_path: Path) -> None:
    gone, fresh, late = (InstallLock(tmp_path / "x.lock") for _ in range(3))
    gone.take()
    seen = gone.holder()
    assert seen is not None
    gone.release()
    fresh.take()
    held = fresh.holder()
    late.break_(seen)
    assert fresh.holder() == held
    assert not late.take()


def test_an_abandoned_lock_of_another_host_is_taken_after_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurmbus_agent.environments.service.ABANDONED_AFTER", 0.3)
    (store.root / f"{DIGEST[:20]}.lock").symlink_to("login9/boot/1:4242:99:nonce:7")
    told: list[str] = []

    async def take() -> None:
        environments = Environments(Bus(BusSettings(servers=())), store, EnvironmentSettings(), lambda *_: None)
        async with environments._locked(DIGEST, told.append) as found:
            assert found is None
            assert not InstallLock(store.root / f"{DIGEST[:20]}.lock").take()

    asyncio.run(asyncio.wait_for(take(), 30))
    assert told == ["waiting for the agent on login9, which is installing it"]
    with contextlib.suppress(FileNotFoundError):
        assert not (store.root / f"{DIGEST[:20]}.lock").readlink()
