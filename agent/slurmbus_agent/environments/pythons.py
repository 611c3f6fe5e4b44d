"""The Pythons of this host on which environments can be built, and what else decides what runs here."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slurmbus_protocol.errors import EnvironmentUnusable
from slurmbus_protocol.messages import Platform, SitePython

OLDEST = (3, 9)
NEWEST_GUESS = 20
"""Names up to python3.20 are looked for."""
_PATIENCE = 20.0
"""Seconds; a Python on a cold parallel file system takes several to start."""
_ASK = """\
import json, os, sys, sysconfig
base = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps({
    "path": base if os.path.exists(base) else sys.executable,
    "prefix": sys.base_prefix,
    "version": "%d.%d.%d" % sys.version_info[:3],
    "implementation": sys.implementation.name,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "library": os.path.relpath(sysconfig.get_path("purelib", "posix_prefix", {"base": "/b", "platbase": "/b"}), "/b"),
}))
"""


@dataclass(frozen=True)
class Python:
    """One interpreter, as it describes itself."""

    path: str
    version: str
    implementation: str
    free_threaded: bool
    library: str
    """Where packages go, relative to a virtual environment."""

    @property
    def series(self) -> str:
        """``3.12``."""
        return ".".join(self.version.split(".")[:2])

    def fits(self, wanted: str, *, free_threaded: bool = False) -> bool:
        """Tell whether this is what a manifest asks for: a version, of which the last part may be missing."""
        same = self.version == wanted or self.version.startswith(f"{wanted}.")
        return same and self.free_threaded == free_threaded and self.implementation == "cpython"


def discover(preferred: Iterable[str]) -> list[Python]:
    """Ask every Python that can be found: the preferred ones (names or paths) first, then those on PATH, then ours."""
    names = ["python3", *(f"python3.{minor}" for minor in range(NEWEST_GUESS, OLDEST[1] - 1, -1)), sys.executable]
    found: dict[str, Python] = {}
    asked: set[str] = set()
    for name in (*preferred, *names):
        path = shutil.which(name)
        if path is None or os.path.realpath(path) in asked:
            continue
        asked.add(os.path.realpath(path))
        python = ask(path)
        if python is not None:
            found.setdefault(os.path.realpath(python.path), python)
    return list(found.values())


def ask(path: str) -> Python | None:
    """Let an interpreter describe itself; None when it is none, or too old, or doesn't answer."""
    try:
        process = subprocess.Popen(
            [path, "-I", "-S", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    except OSError:
        return None
    with process:
        try:
            said, _ = process.communicate(timeout=_PATIENCE)
            facts = json.loads(said)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also a wrapper's own children, which keep the pipe open
            return None
        except ValueError:
            return None
    version = tuple(int(part) for part in facts["version"].split(".")[:2])
    if version < OLDEST:
        return None
    facts.pop("prefix")
    return Python(**facts)


def choose(pythons: Iterable[Python], wanted: str, *, free_threaded: bool = False) -> Python:
    """Give the first Python that fits; EnvironmentUnusable names those that there are."""
    pythons = list(pythons)
    if wanted.startswith("/"):
        python = ask(wanted)
        if python is None:
            raise EnvironmentUnusable(f"the environment is for the Python at {wanted}, and there is none on this host")
        return python
    for python in pythons:
        if python.fits(wanted, free_threaded=free_threaded):
            return python
    there = ", ".join(sorted({python.version for python in pythons})) or "none"
    raise EnvironmentUnusable(
        f"the environment is for Python {wanted}{'t' if free_threaded else ''}, and this site has {there}",
        hint="pack it for one of these, or name another one in the agent's SITE.settings.toml: "
        '[environments] pythons = ["/opt/python/3.12/bin/python3"]',
    )


def this_platform(pythons: Iterable[Python]) -> Platform:
    """Say what an environment must be made for."""
    libc, libc_version = _libc()
    return Platform(
        system=platform.system(),
        machine=platform.machine(),
        libc=libc,
        libc_version=libc_version,
        pythons=tuple(
            SitePython(
                path=python.path,
                version=python.version,
                implementation=python.implementation,
                free_threaded=python.free_threaded,
            )
            for python in pythons
        ),
    )


def _libc() -> tuple[str, str]:
    if sys.platform == "darwin":
        return "", platform.mac_ver()[0]
    try:
        words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError):
        words = []
    if len(words) == 2:  # noqa: PLR2004 - "glibc 2.41"
        return "glibc", words[1]
    for loader in Path("/lib").glob("ld-musl-*"):
        done = subprocess.run([loader], capture_output=True, text=True, check=False)  # it says its version and fails
        for line in done.stderr.splitlines():
            if line.startswith("Version "):
                return "musl", line.split()[1]
    return "", ""
