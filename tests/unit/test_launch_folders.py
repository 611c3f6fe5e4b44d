"""Folders on a node's own disk."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from slurmbus_agent.runner.launch_folders import MARK, SETTLED, Folders


def age(folder: Path) -> None:
    before = time.time() - SETTLED - 1
    os.utime(folder, (before, before))


def test_folders_are_private_and_removed(tmp_path: Path) -> None:
    folders = Folders()
    path = tmp_path / "ray-1"
    folders.make(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "logs").mkdir()
    with pytest.raises(FileExistsError):
        Folders().make(str(path))
    folders.remove()
    assert not path.exists()


def test_what_a_killed_launch_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    used, own, new = Folders(), tmp_path / "ray-own", tmp_path / "ray-new"
    used.make(str(tmp_path / "ray-used"))
    forgotten = tmp_path / "ray-forgotten"
    for folder in (forgotten, new):
        folder.mkdir()
        (folder / MARK).touch()
    own.mkdir()  # somebody else made it: there is no mark
    other = tmp_path / "spark-forgotten"
    other.mkdir()
    (other / MARK).touch()
    for folder in (tmp_path / "ray-used", forgotten, own, other):
        age(folder)
    folders = Folders()
    folders.make(str(tmp_path / "ray-mine"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["ray-mine", "ray-new", "ray-own", "ray-used", "spark-forgotten"]
    used.remove()
    folders.remove()
