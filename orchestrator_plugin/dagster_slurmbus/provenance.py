"""Where a result comes from: hashes of the files, the git commit, and the versions of what took part."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import dagster as dg

import slurmbus_protocol
from dagster_slurmbus.outcomes import Metadata, prefixed
from slurmbus_protocol.messages import FileRef

_GIT_TIMEOUT = 5.0
_DIRTY = "-dirty"
_DESCRIBE = ("git", "describe", "--always", "--abbrev=40", "--exclude=*")


@dataclass(frozen=True, slots=True)
class Commit:
    """The git commit of a folder."""

    sha: str
    dirty: bool
    """True when a tracked file of the repository differs from the commit."""


class CommitLookup:
    """Asks git in the background, so that a slow file system doesn't hold a submission up; a context manager.

    Args:
        folder: whose commit is looked up; None asks nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Ask."""
        if self._folder is not None:
            with contextlib.suppress(OSError):  # no git on this machine: then there is nothing to say
                self._process = subprocess.Popen(
                    [*_DESCRIBE, f"--dirty={_DIRTY}"],
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
                )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop asking."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def result(self, timeout: float = _GIT_TIMEOUT) -> Commit | None:
        """Give the commit, or None when the folder isn't in a repository or git doesn't answer in time."""
        if self._process is None:
            return None
        try:
            said, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        text = said.strip()
        if self._process.returncode != 0 or not text:
            return None
        return Commit(sha=text.removesuffix(_DIRTY), dirty=text.endswith(_DIRTY))


def versions(**others: str | None) -> dict[str, str]:
    """Give the versions of everything that took part; ``others`` are those that only the caller knows."""
    known: dict[str, str | None] = {
        "dagster": dg.__version__,
        "dagster-slurmbus": version("dagster-slurmbus"),
        "slurmbus-protocol": slurmbus_protocol.__version__,
        **others,
    }
    return {name: value for name, value in known.items() if value}


def provenance_metadata(files: Iterable[FileRef], commit: Commit | None, took_part: dict[str, str]) -> Metadata:
    """Give it all as metadata."""
    hashes = {file.path: file.sha256 for file in files}
    found: dict[str, dg.MetadataValue[Any] | None] = {
        "files_sha256": dg.MetadataValue.json(hashes) if hashes else None,
        "git_commit": dg.MetadataValue.text(commit.sha) if commit else None,
        "git_dirty": dg.MetadataValue.bool(commit.dirty) if commit else None,
        "versions": dg.MetadataValue.json(took_part),
    }
    return prefixed(found)
