"""The spool as the agent uses it: real files."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slurmbus_agent.spool import (
    AGENT_NODE,
    Claim,
    JobDir,
    LinkAddress,
    RunnerPlan,
    Spool,
    SpoolFull,
    SpoolUnusable,
    batch_script,
    check_path,
)
from slurmbus_protocol.errors import BlobCorrupt, InvalidName, InvalidSetting
from slurmbus_protocol.subjects import Stream, new_ulid

KEY = new_ulid()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    one = Spool(tmp_path / "spool")
    one.prepare()
    return one


@pytest.fixture
def job(spool: Spool) -> JobDir:
    one = spool.job(KEY, 0)
    one.create(b"signed", "slurmbus.v1.x.req.y", {"sig": "abc"})
    return one


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Make every write beyond ``size`` bytes fail, as a full disk does, without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestPreparing:
    def test_everything_is_private(self, spool: Spool, job: JobDir) -> None:
        job.write_context(b"{}")
        for folder, folders, files in os.walk(spool.root):
            assert mode(Path(folder)) == 0o700
            assert all(mode(Path(folder, name)) == 0o700 for name in folders)
            assert all(mode(Path(folder, name)) == 0o600 for name in files)

    def test_an_open_root_is_closed(self, tmp_path: Path) -> None:
        (tmp_path / "spool").mkdir(mode=0o755)
        Spool(tmp_path / "spool").prepare()
        assert mode(tmp_path / "spool") == 0o700

    def test_the_runner_is_one_file_and_is_repaired(self, spool: Spool) -> None:
        runner = spool.prepare()
        content = runner.read_bytes()
        before = runner.stat().st_ino
        assert spool.prepare().stat().st_ino == before
        runner.write_bytes(b"half a runn")
        assert spool.prepare().read_bytes() == content
        assert [path.name for path in spool.root.iterdir() if path.is_file()] == [runner.name]

    def test_the_runner_is_named_by_its_content(self, spool: Spool) -> None:
        runner = spool.prepare()
        assert runner.name == f"runner-{hashlib.sha256(runner.read_bytes()).hexdigest()[:12]}.py"

    def test_a_root_that_is_a_file_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "spool").write_text("")
        with pytest.raises(SpoolUnusable, match="spool"):
            Spool(tmp_path / "spool").prepare()

    def test_pipes_module(self, spool: Spool, tmp_path: Path) -> None:
        source = b"x = 1\n"
        digest = hashlib.sha256(source).hexdigest()
        folder = spool.install_pipes_module(digest, source)
        assert (folder / "dagster_pipes.py").read_bytes() == source
        (tmp_path / "module").write_bytes(source)
        assert spool.install_pipes_module(digest, tmp_path / "module") == folder
        with pytest.raises(BlobCorrupt):
            spool.install_pipes_module(digest, b"x = 2\n")
        with pytest.raises(InvalidName):
            spool.install_pipes_module("../../x", source)

    def test_link_is_replaced_whole(self, spool: Spool) -> None:
        for port in (1, 2):
            spool.write_link(LinkAddress(hosts=("10.0.0.1",), port=port, server="ab", epoch=7))
            written = json.loads(spool.link.read_text())
            assert written == {
                "hosts": ["10.0.0.1"],
                "port": port,
                "server": "ab",
                "epoch": 7,
                "fingerprint": "",
            }
        assert len([path for path in spool.root.iterdir() if path.is_file()]) == 2  # the runner and this


class TestJobs:
    @pytest.mark.usefixtures("job")
    def test_keys_are_what_is_there(self, spool: Spool) -> None:
        other = new_ulid()
        spool.job(other, 12).create(b"", "s", {})
        for name in ("junk", f"{KEY}.x", f"{KEY}", f"{KEY}.-1", f"{KEY}.01", f".{KEY}.0"):
            (spool.root / "jobs" / name).mkdir()
        assert spool.keys() == sorted([(KEY, 0), (other, 12)])

    def test_an_absent_spool_has_no_jobs(self, tmp_path: Path) -> None:
        assert Spool(tmp_path / "nothing").keys() == []

    @pytest.mark.parametrize(
        ("key", "task"), [("../x", 0), ("01m8jd37dsne29fwh6efrp7btn", 0), ("01M8JD37DSNE29FWH6EFRP7BTN", -1), ("", 0)]
    )
    def test_names_are_checked(self, spool: Spool, key: str, task: int) -> None:
        with pytest.raises(InvalidName):
            spool.job(key, task)

    def test_a_request_is_kept_once(self, job: JobDir) -> None:
        job.create(b"another", "other", {})
        stored = job.read_request()
        assert stored is not None
        assert (stored.data, stored.subject, stored.headers) == (b"signed", "slurmbus.v1.x.req.y", {"sig": "abc"})

    def test_an_interrupted_creation_is_finished(self, spool: Spool) -> None:
        (spool.root / "jobs" / f"{KEY}.1").mkdir(mode=0o700)
        assert spool.job(KEY, 1).read_request() is None
        spool.job(KEY, 1).create(b"signed", "s", {})
        stored = spool.job(KEY, 1).read_request()
        assert stored is not None
        assert stored.data == b"signed"

    def test_a_broken_request_is_an_error(self, job: JobDir) -> None:
        (job.path / "request").write_bytes(b"\xff\xff")
        with pytest.raises(SpoolUnusable, match="request"):
            job.read_request()

    def test_plan(self, job: JobDir) -> None:
        plan = RunnerPlan(key=KEY, task=0, argv=("a", "ä\n"), cwd="/x", secret=bytes(range(256)), env={"A": "1"})
        assert job.read_plan() is None
        job.write_plan(plan)
        assert job.read_plan() == plan

    def test_what_has_a_plan_can_be_claimed_also_after_an_interrupted_creation(self, spool: Spool) -> None:
        """A task's request lies elsewhere, so nobody makes its folder again before it is staged."""
        job = spool.job(KEY, 1)
        job.path.mkdir(mode=0o700)
        job.write_plan(RunnerPlan(key=KEY, task=1, argv=("true",), cwd="/x", secret=bytes(32)))
        claim = Claim(start=0, job_id=7, node="c1", nonce="aa")
        assert job.claim(claim) == claim

    def test_work_dirs(self, job: JobDir, tmp_path: Path) -> None:
        assert job.work_dir(None).path == job.path / "work"
        elsewhere = job.work_dir(str(tmp_path / "runs")).path
        assert elsewhere == tmp_path / "runs" / f"{KEY}.0"
        assert mode(elsewhere) == 0o700
        (tmp_path / "file").write_text("")
        for bad in ("runs", "", "/a/../b", str(tmp_path / "file")):
            with pytest.raises(InvalidSetting, match="work_base"):
                job.work_dir(bad)
        job.remove()
        assert elsewhere.is_dir()


class TestPlacing:
    def test_files_are_placed_whole(self, job: JobDir) -> None:
        work = job.work_dir(None)
        with work.place("a/b/c.txt") as file:
            file.write(b"new")
            assert not (work.path / "a/b/c.txt").exists()
        with work.place("run.sh", executable=True) as file:
            file.write(b"#!/bin/sh\n")
        assert (work.path / "a/b/c.txt").read_bytes() == b"new"
        assert mode(work.path / "a/b/c.txt") == 0o600
        assert mode(work.path / "run.sh") == 0o700

    def test_a_failed_download_leaves_nothing(self, job: JobDir) -> None:
        work = job.work_dir(None)
        with pytest.raises(TimeoutError), work.place("a/b.txt") as file:
            file.write(b"half")
            raise TimeoutError
        assert list((work.path / "a").iterdir()) == []

    def test_placing_again_replaces(self, job: JobDir) -> None:
        work = job.work_dir(None)
        for content in (b"one", b"two"):
            with work.place("x") as file:
                file.write(content)
        assert (work.path / "x").read_bytes() == b"two"

    @pytest.mark.parametrize(
        "path",
        ["", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "./", "a/", "a/.", "a\0b", "x" * 256, "ä" * 128, "//"],
    )
    def test_paths_that_lead_outside_or_nowhere(self, job: JobDir, path: str) -> None:
        work = job.work_dir(None)
        with pytest.raises(InvalidSetting, match="outputs: "), work.place(path, field="outputs"):
            pytest.fail("it must not come this far")
        assert list(work.path.iterdir()) == []

    def test_plain_paths(self) -> None:
        assert check_path("./a//b/./c") == ["a", "b", "c"]
        assert check_path("..a/b..") == ["..a", "b.."]

    def test_symlinks_are_not_followed(self, job: JobDir, tmp_path: Path) -> None:
        work = job.work_dir(None)
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_text("mine")
        (work.path / "link").symlink_to(outside)
        (work.path / "file").symlink_to(outside / "file")
        with pytest.raises(InvalidSetting, match="'link' is no folder"), work.place("link/x"):
            pytest.fail("it must not come this far")
        with work.place("file") as file:
            file.write(b"theirs")
        assert (outside / "file").read_text() == "mine"
        assert [path.name for path in outside.iterdir()] == ["file"]
        assert not (work.path / "file").is_symlink()

    def test_things_in_the_way(self, job: JobDir) -> None:
        work = job.work_dir(None)
        with work.place("a"):
            pass
        (work.path / "b").mkdir()
        with pytest.raises(InvalidSetting, match="'a' is no folder"), work.place("a/b"):
            pytest.fail("it must not come this far")
        with pytest.raises(InvalidSetting, match="a folder has this name"), work.place("b"):
            pass
        assert sorted(path.name for path in work.path.iterdir()) == ["a", "b"]


class TestClaims:
    def test_the_first_one_stands(self, job: JobDir) -> None:
        first = Claim(start=0, job_id=7, node="c1", nonce="aa", claimed_at=5.125)
        assert job.claim(first) == first
        assert job.claim(first) == first
        assert job.claim(Claim(start=0, job_id=8, node=AGENT_NODE, nonce="bb")) == first
        seal = Claim(start=1, job_id=0, node=AGENT_NODE, nonce="bb")
        assert job.claim(seal) == seal
        assert job.claims() == [first, seal]

    def test_no_claims(self, spool: Spool, job: JobDir) -> None:
        assert job.claims() == []
        assert spool.job(new_ulid(), 0).claims() == []

    def test_more_than_ten_starts_are_in_order(self, job: JobDir) -> None:
        for start in range(12):
            job.claim(Claim(start=start, job_id=start, node="c1", nonce="aa"))
        assert [claim.job_id for claim in job.claims()] == list(range(12))

    def test_a_strange_claim_is_an_error(self, job: JobDir) -> None:
        (job.path / "starts" / "0").symlink_to("somewhere")
        with pytest.raises(SpoolUnusable, match="no claim"):
            job.claims()


class TestReading:
    def test_ranges(self, job: JobDir) -> None:
        (job.path / "0.stdout").write_bytes(b"0123456789")
        assert job.read(0, Stream.STDOUT, 2, 3) == b"234"
        assert job.read(0, Stream.STDOUT, 8, 100) == b"89"
        assert job.read(0, Stream.STDOUT, 100, 1) == b""
        assert job.read(1, Stream.STDOUT, 0, 1) == b""

    def test_sizes_without_a_report_are_those_of_the_files(self, job: JobDir) -> None:
        (job.path / "0.stderr").write_bytes(b"oops")
        assert job.report(0) is None
        assert job.final_sizes(0) == {"stdout": 0, "stderr": 4, "messages": 0}

    def test_a_broken_report_is_an_error(self, job: JobDir) -> None:
        (job.path / "0.report").write_text('{"start": 0}')
        with pytest.raises(SpoolUnusable, match=r"0\.report"):
            job.report(0)

    def test_looks_are_counted(self, spool: Spool, job: JobDir) -> None:
        before = spool.metadata_calls
        job.claims()
        job.report(0)
        job.read(0, Stream.STDOUT, 0, 1)
        assert spool.metadata_calls - before == 3


class TestRemoving:
    def test_a_job_is_removed(self, spool: Spool, job: JobDir, tmp_path: Path) -> None:
        outside = tmp_path / "precious"
        outside.mkdir()
        (outside / "file").write_text("")
        (job.work_dir(None).path / "link").symlink_to(outside)
        job.remove()
        job.remove()
        assert spool.keys() == []
        assert list((spool.root / "trash").iterdir()) == []
        assert (outside / "file").exists()

    def test_an_interrupted_removal_is_finished(self, spool: Spool, job: JobDir) -> None:
        job.path.rename(spool.root / "trash" / f"{KEY}.0.abcd")
        assert spool.empty_trash() == (1, [])
        assert spool.empty_trash() == (0, [])

    def test_nothing_behind_a_symlink_is_removed(self, spool: Spool, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / f"{KEY}.0").mkdir(parents=True)
        (spool.root / "jobs").rmdir()
        (spool.root / "jobs").symlink_to(elsewhere)
        with pytest.raises(SpoolUnusable, match="symlink"):
            spool.job(KEY, 0).remove()
        assert (elsewhere / f"{KEY}.0").is_dir()
        (spool.root / "trash").rmdir()
        (spool.root / "trash").symlink_to(elsewhere)
        with pytest.raises(SpoolUnusable, match="symlink"):
            spool.empty_trash()
        assert (elsewhere / f"{KEY}.0").is_dir()


class TestRoom:
    def test_there_is_room(self, spool: Spool) -> None:
        spool.check_room(1, 1)

    def test_too_many_bytes(self, spool: Spool) -> None:
        with pytest.raises(SpoolFull, match="bytes left") as caught:
            spool.check_room(1 << 62, 0)
        assert caught.value.retryable
        assert "quota" in caught.value.hint

    def test_too_many_files(self, spool: Spool) -> None:
        if not os.statvfs(spool.root).f_files:
            pytest.skip("this file system doesn't count files")
        with pytest.raises(SpoolFull, match="more files"):
            spool.check_room(0, 1 << 62)

    def test_writing_to_a_full_disk(self, job: JobDir) -> None:
        work = job.work_dir(None)
        with file_size_limit(10):
            with pytest.raises(SpoolFull, match=r"context"):
                job.write_context(b"x" * 100)
            with pytest.raises(SpoolFull, match=r"big"), work.place("big") as file:
                file.write(b"x" * 100)
        assert sorted(path.name for path in job.path.iterdir()) == ["request", "starts", "work"]
        assert list(work.path.iterdir()) == []


def test_batch_script_quotes_its_paths() -> None:
    script = batch_script("my python", Path("/a b/$(x)'y"), Path("/c;d"))
    assert script.startswith("#!/bin/bash -l\n")
    assert """'/a b/$(x)'"'"'y' '/c;d'""" in script
    assert "'my python' python3" in script
