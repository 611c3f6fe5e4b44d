"""A Python for a site that has none that is new enough: an archive of this machine, or one that uv gets.

The archives are those of python-build-standalone (``install_only``): a Python that runs from any folder, without
anything else but the C library. uv fetches the same ones.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from slurmbus.bootstrap.probe import Probe, Python
from slurmbus.bootstrap.session import Remote
from slurmbus.environments.requirements import cache_folder
from slurmbus.environments.tools import find_uv
from slurmbus.errors import SiteUnfit
from slurmbus_protocol.blobs import hash_file
from slurmbus_protocol.errors import EnvironmentUnusable

VERSION = "3.12"
PATIENCE = 300.0
NEEDED = 300 * 1024 * 1024
"""Bytes that a Python takes at most, with its archive."""
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64", "ppc64le": "powerpc64le"}
Tell = Callable[[str, int, int], None]


def archive_for(probe: Probe, named: str | None, tell: Tell) -> Path:
    """Give an archive with a Python for the site.

    Args:
        probe: of the site.
        named: a file of this machine.
        tell: hears what takes long.

    Raises:
        SiteUnfit: there is none; the message says what else could be done.
    """
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file() or not tarfile.is_tarfile(path):
            raise SiteUnfit(
                f"python_archive={named!r} is no tar archive", hint="e.g. cpython-3.12…-install_only.tar.gz"
            )
        return path
    tell(f"getting Python {VERSION} for the site", 0, 0)
    return _fetched(probe)


def _fetched(probe: Probe) -> Path:
    """Let uv get it here, and pack it: the site may have no network."""
    libc = "musl" if probe.libc[0] == "musl" else "gnu"
    wanted = f"cpython-{VERSION}-linux-{_MACHINES.get(probe.machine, probe.machine)}-{libc}"
    folder = cache_folder() / "pythons"
    archive = folder / f"{wanted}.tar.gz"
    if archive.exists():
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        try:
            done = subprocess.run(
                [find_uv(), "python", "install", "--no-bin", "--install-dir", work, wanted],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=PATIENCE,
                check=False,
            )
            said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
            failed = done.returncode != 0
        except subprocess.TimeoutExpired:
            said, failed = [f"no answer within {PATIENCE:.0f} s"], True
        except EnvironmentUnusable as error:
            said, failed = [error.message], True
        roots = [path.parent.parent for path in Path(work).glob("*/bin/python3")]
        if failed or not roots:
            raise SiteUnfit(
                f"there is no Python 3.11 or newer on {probe.host} (found: {_found(probe)}), and none could be got "
                f"here to take along: {' '.join(said) or 'uv brought none'}",
                hint="take one of python-build-standalone along: --python-archive cpython-3.12…-install_only.tar.gz; "
                "or name one that is there: --agent-python /path/to/python3; or load a module that has one",
            )
        new = archive.with_suffix(".new")
        with tarfile.open(new, "w:gz", compresslevel=6) as packed:
            packed.add(roots[0], arcname="python")
        new.replace(archive)
    return archive


def _found(probe: Probe) -> str:
    return ", ".join(f"{one.implementation} {one.version}" for one in probe.pythons or ()) or "none"


def bring(remote: Remote, folder: str, archive: Path, tell: Tell) -> Python:
    """Unpack an archive on the site, unless it is there, and give its Python.

    Raises:
        SiteUnfit: it can't be unpacked, or doesn't run there.
    """
    digest = hash_file(archive)[0][:12]
    target = f"{folder}/pythons/{digest}"
    if not remote.call("look", path=f"{target}/complete")["kind"]:
        _unpack(remote, target, archive, tell)
    asked = remote.call("python_of", paths=[f"{target}/python/bin/python3", f"{target}/bin/python3"], patience=60.0)
    if asked is None:
        remote.call("remove", path=target)
        raise SiteUnfit(
            f"the Python of {archive.name} doesn't run on the login node", hint="is it for this machine and C library?"
        )
    return Python(**asked)


def _unpack(remote: Remote, target: str, archive: Path, tell: Tell) -> None:
    total, done = archive.stat().st_size, 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        tell("sending a Python", done, total)

    remote.call("remove", path=target)
    remote.call("room", path=target.rpartition("/")[0], size=NEEDED)
    remote.call("folder", path=target, new=True)
    packed = f"{target}/archive.tar"
    remote.send(archive, packed, moved)
    remote.call("untar", path=packed, target=target, patience=PATIENCE)
    remote.call("remove", path=packed)
    remote.write(f"{target}/complete", f"{archive.name}\n".encode())
    remote.call("keep", path=target)
