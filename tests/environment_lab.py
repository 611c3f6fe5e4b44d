"""Wheels, locks and archives of the tests' own making."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path


def row(path: str, content: bytes) -> str:
    """Give a line of a RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content)}\n"


def make_wheel(
    target: Path,
    files: Mapping[str, bytes],
    *,
    record: Callable[[str], str] = lambda text: text,
    entries: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a wheel, whose own name says what it is; ``entries`` come in addition to what its RECORD names."""
    info = "-".join(target.name.split("-")[:2]) + ".dist-info"
    whole = {f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n", **files}
    text = "".join(row(path, content) for path, content in whole.items()) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {**whole, **(entries or {})}.items():
            archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record(text))
    return target


def make_package(folder: Path, name: str, code: str, **files: bytes) -> Path:
    """Write a wheel of one module that can be run as a command of the same name."""
    info = f"{name}-1.0.dist-info"
    content = {
        f"{name}.py": code.encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-cli = {name}:main\n".encode(),
        **files,
    }
    return make_wheel(folder / f"{name}-1.0-py3-none-any.whl", content)


def make_lock(folder: Path, *wheels: Path) -> Path:
    """Write a pylock.toml of wheels that lie here."""
    lines = ['lock-version = "1.0"', 'created-by = "tests"']
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines += ["[[packages]]", f'name = "{name}"', f'version = "{version}"']
        lines.append(
            f'wheels = [{{ name = "{wheel.name}", path = "{wheel}", size = {wheel.stat().st_size}, '
            f'hashes = {{ sha256 = "{digest}" }} }}]'
        )
    path = folder / "pylock.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """Describe one entry of an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, 1_000_000_000
    return info


def make_tar(target: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """Write an archive."""
    with tarfile.open(target, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target


def conda_prefix(folder: Path) -> Path:
    """Make what conda makes of a package: in its cache with a placeholder, in the environment with its path."""
    prefix, package, placeholder = folder / "conda-env", folder / "pkgs" / "tool-1-0", "/opt/anaconda1anaconda2"
    files = {
        "bin/tool": f"#!/bin/sh\necho {placeholder} $ACTIVATED\n",
        "etc/conda/activate.d/x.sh": 'export ACTIVATED="yes$UNSET in $CONDA_PREFIX"\n',
    }
    for root, path in ((package, placeholder), (prefix, str(prefix))):
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content.replace(placeholder, path))
        (root / "bin" / "tool").chmod(0o755)
    (package / "info").mkdir()
    paths: list[dict[str, object]] = [{"_path": name, "path_type": "hardlink"} for name in files]
    paths[0] |= {"file_mode": "text", "prefix_placeholder": placeholder}
    (package / "info" / "paths.json").write_text(json.dumps({"paths_version": 1, "paths": paths}))
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta" / "history").touch()
    record = {"name": "tool", "version": "1", "url": "x", "files": list(files), "link": {"source": str(package)}}
    (prefix / "conda-meta" / "tool-1-0.json").write_text(json.dumps(record))
    return prefix
