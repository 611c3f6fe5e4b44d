"""Where a result comes from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import dagster as dg
import pytest

from dagster_slurmbus.provenance import Commit, CommitLookup, provenance_metadata, versions
from slurmbus_protocol.messages import FileRef

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git on this machine")


def git(folder: Path, *args: str) -> str:
    isolated = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True, env={**os.environ, **isolated}
    )
    return done.stdout.strip()


def look(folder: Path | None) -> Commit | None:
    with CommitLookup(folder) as lookup:
        return lookup.result()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


@needs_git
def test_commit_and_dirty_flag(outside: Path) -> None:
    git(outside, "init", "-q")
    (outside / "train.py").write_text("1")
    git(outside, "add", ".")
    git(outside, "commit", "-q", "-m", "one")
    git(outside, "tag", "v1")
    sha = git(outside, "rev-parse", "HEAD")
    assert look(outside) == Commit(sha, dirty=False)
    (outside / "train.py").write_text("2")
    assert look(outside) == Commit(sha, dirty=True)


def test_no_repository_and_no_folder_are_no_errors(outside: Path) -> None:
    assert look(outside) is None
    assert look(None) is None


def test_a_machine_without_git_is_no_error(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(outside))
    assert look(outside) is None


def test_a_git_that_hangs_holds_nothing_up(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = outside / "git"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{outside}:{os.environ['PATH']}")
    with CommitLookup(outside) as lookup:
        assert lookup.result(timeout=0.05) is None


def test_metadata_names_files_commit_and_versions() -> None:
    took_part = versions(agent="0.1.0", slurm=None)
    assert set(took_part) == {"dagster", "dagster-slurmbus", "slurmbus-protocol", "agent"}
    assert took_part["dagster"] == dg.__version__
    files = [FileRef(path="train.py", sha256="a" * 64, size=1)]
    metadata = provenance_metadata(files, Commit("f" * 40, dirty=True), took_part)
    assert metadata["slurmbus/files_sha256"].value == {"train.py": "a" * 64}
    assert metadata["slurmbus/git_commit"].value == "f" * 40
    assert metadata["slurmbus/git_dirty"].value is True
    assert metadata["slurmbus/versions"].value == took_part
    assert set(provenance_metadata([], None, took_part)) == {"slurmbus/versions"}
