"""The wheels of the agent for a site: our own from what is installed here, others from the package index."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, canonicalize_version

from slurmbus.environments.packing import Progress, Target
from slurmbus.environments.requirements import Requirements, cache_folder
from slurmbus_protocol.errors import EnvironmentUnusable
from slurmbus_protocol.messages import Platform

OWN = {"slurmbus-protocol": "slurmbus_protocol", "slurmbus-agent": "slurmbus_agent"}
"""Distributions and the package that each holds; all of it is Python."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of everything in our wheels: the same source is the same wheel."""
_WHEEL = "Wheel-Version: 1.0\nGenerator: slurmbus\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def collect(platform: Platform, python: str, tell: Progress) -> dict[str, Path]:
    """Give all wheels of the agent by their names.

    Args:
        platform: the site's, with its Pythons.
        python: the path of the one on which the agent will run.
        tell: hears what takes long.

    Raises:
        EnvironmentUnusable: one can't be had.
    """
    folder = cache_folder() / "agent"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, package in OWN.items():
        data, wheel = own_wheel(name, package)
        found[wheel] = _kept(folder, wheel, data)
    needed = folder / "requirements.in"
    text = "".join(f"{line}\n" for line in requirements())
    if not needed.exists() or needed.read_text() != text:
        needed.write_text(text)
    pack = Requirements(path=str(needed), python=python).pack(Target(platform), tell)
    found |= {path.name: path for path in pack.sources.values()}
    return found


def source_hash() -> str:
    """Hash our own wheels: another one means that this machine has another version of the agent."""
    check = hashlib.sha256()
    for name, package in OWN.items():
        check.update(own_wheel(name, package)[0])
    return check.hexdigest()[:16]


def requirements() -> list[str]:
    """Give what our distributions need of others, without their extras."""
    found: set[str] = set()
    for name in OWN:
        for line in _installed(name).requires or ():
            one = Requirement(line)
            if canonicalize_name(one.name) not in OWN and not (one.marker and "extra" in str(one.marker)):
                found.add(str(one))
    return sorted(found)


def own_wheel(name: str, package: str) -> tuple[bytes, str]:
    """Make a wheel of a distribution of ours as it is installed here, also of a checkout; give it and its name."""
    there = _installed(name)
    version = canonicalize_version(there.version, strip_trailing_zero=False)
    info = f"{package}-{version}.dist-info"
    content = dict(_modules(package))
    content |= {f"{info}/METADATA": (there.read_text("METADATA") or "").encode(), f"{info}/WHEEL": _WHEEL.encode()}
    entry_points = there.read_text("entry_points.txt")
    if entry_points:
        content[f"{info}/entry_points.txt"] = entry_points.encode()
    content[f"{info}/RECORD"] = _record(content, f"{info}/RECORD")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in content.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return packed.getvalue(), f"{package}-{version}-py3-none-any.whl"


def _installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise EnvironmentUnusable(
            f"{name} isn't installed here, so it can't be taken to the site", hint="install dagster-slurmbus again"
        ) from error


def _modules(package: str) -> Iterator[tuple[str, bytes]]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentUnusable(f"{package} isn't a folder here", hint="install dagster-slurmbus again")
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _record(content: Mapping[str, bytes], itself: str) -> bytes:
    lines = []
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    return "".join([*lines, f"{itself},,\n"]).encode()


def _kept(folder: Path, name: str, data: bytes) -> Path:
    path = folder / hashlib.sha256(data).hexdigest()[:16] / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(path)
    return path
