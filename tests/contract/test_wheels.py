"""Every wheel installs alone into an empty environment: the agent without Dagster, the plugin without pyslurm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurmbus_cluster.agents import PROJECT, build_wheels

UV = shutil.which("uv") or str(PROJECT / ".uv" / "bin" / "uv")
CASES = {
    "slurmbus-protocol": (["slurmbus_protocol.codec"], ["dagster", "pyslurm", "slurmbus_agent", "slurmbus"]),
    "slurmbus-agent": (
        ["slurmbus_agent.cli", "slurmbus_agent.agent"],
        ["dagster", "dagster_pipes", "pyslurm", "slurmbus"],
    ),
    "dagster-slurmbus": (["dagster_slurmbus", "slurmbus.cli"], ["pyslurm"]),
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    build_wheels(folder, ("protocol", "agent", "orchestrator_plugin"))
    return folder


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_wheel_installs_alone(name: str, wheels: Path, tmp_path: Path) -> None:
    imports, absent = CASES[name]
    environment = tmp_path / "env"
    python = environment / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", str(python), "--find-links", str(wheels), name], check=True
    )
    check = "\n".join(
        [
            *(f"import {module}" for module in imports),
            "import importlib.util as u",
            f"there = [name for name in {absent!r} if u.find_spec(name)]",
            "assert not there, f'{there} was installed too'",
        ]
    )
    done = subprocess.run([python, "-c", check], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_commands_are_installed_and_answer(wheels: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    python = environment / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    argv = [UV, "pip", "install", "--quiet", "--python", str(python), "--find-links", str(wheels), "dagster-slurmbus"]
    subprocess.run(argv, check=True)
    for command in ("slurmbus", "slurmbus-agent"):
        done = subprocess.run([environment / "bin" / command, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "slurmbus" in done.stdout.lower()
    page = "from slurmbus.dashboard.app import STATIC; assert (STATIC / 'vendor/uplot/uPlot.esm.js').is_file()"
    subprocess.run([python, "-c", page], check=True)
    imported = "import sys, slurmbus.cli; print([name for name in sys.modules if name.split('.')[0] == 'dagster'])"
    done = subprocess.run([python, "-c", imported], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
