"""Other people's programs that packing needs: finding them, running them, and saying what they said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from slurmbus_protocol.errors import EnvironmentUnusable

_TAIL = 3000


def find_uv() -> str:
    """Give the program uv: what ``UV`` names, the package's own, or the one on PATH; EnvironmentUnusable without."""
    named = os.environ.get("UV")
    if named and os.access(named, os.X_OK):
        return named
    if find_spec("uv") is not None:
        return str(import_module("uv").find_uv_bin())
    found = shutil.which("uv")
    if found is None:
        raise EnvironmentUnusable(
            "environment: uv isn't installed here, which finds out what has to be packed",
            hint="pip install 'dagster-slurmbus[environments]', or see docs.astral.sh/uv",
        )
    return found


def find_tool(name: str, hint: str) -> str:
    """Give a program on PATH, or EnvironmentUnusable with how to get it."""
    found = shutil.which(name)
    if found is None:
        raise EnvironmentUnusable(f"environment: {name} isn't installed here", hint=hint)
    return found


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program and give what it wrote to stdout; EnvironmentUnusable with its own words when it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise EnvironmentUnusable(f"environment: {command[0]} can't be run: {error.strerror}") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-_TAIL:]
        raise EnvironmentUnusable(f"environment: {Path(command[0]).name} failed: {words}")
    return done.stdout
