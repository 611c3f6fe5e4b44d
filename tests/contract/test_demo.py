"""``slurmbus demo``, as a person runs it who has just installed the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEMO = [sys.executable, "-c", "from slurmbus.cli import main; raise SystemExit(main())", "demo"]


def demo(*arguments: str, env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        env={**os.environ, "TMPDIR": str(folder), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_demo_runs_and_leaves_nothing(tmp_path: Path) -> None:
    done = demo(env={"HOME": str(tmp_path), "SLURMBUS_DEMO_SITE": "ignored"}, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 8 of 8" in done.stdout  # the job's output, live
    assert "π = 3.1" in done.stdout
    assert done.stdout.count("COMPLETED") >= 4  # said by each job, and in the table
    assert "after 2,000,000 darts" in done.stdout
    assert not list(tmp_path.glob("slurmbus-demo-*"))


def test_an_unknown_site_is_told_before_anything_runs(tmp_path: Path) -> None:
    done = demo("--site", "nowhere", env={"SLURMBUS_HOME": str(tmp_path / "home")}, folder=tmp_path)
    assert done.returncode == 2
    assert "there is no site 'nowhere'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
