"""Environments that conda's and pixi's own tools pack."""

from __future__ import annotations

import hashlib
import secrets
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from slurmbus.environments.packing import Pack, PackedEnvironment, Progress, Target, silent
from slurmbus.environments.requirements import cache_folder
from slurmbus.environments.tools import find_tool, run
from slurmbus_protocol.environments import EnvironmentKind
from slurmbus_protocol.errors import EnvironmentUnusable

_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")
_PLATFORMS = {
    ("Linux", "x86_64"): "linux-64",
    ("Linux", "aarch64"): "linux-aarch64",
    ("Linux", "ppc64le"): "linux-ppc64le",
    ("Darwin", "arm64"): "osx-arm64",
    ("Darwin", "x86_64"): "osx-64",
}
_GET_CONDA_PACK = "install it where the environment is: conda install conda-pack, or pip install conda-pack"
_GET_PIXI_PACK = "pixi global install pixi-pack, or its release from github.com/Quantco/pixi-pack"


@dataclass(frozen=True)
class CondaPack(PackedEnvironment):
    """A conda environment of this machine, or an archive that conda-pack has made of one.

    Args:
        source: the environment's folder or name; or the archive (.tar.gz, .tar.bz2, .tar.xz, .tar).
    """

    needs_platform = False
    source: str

    def pack(self, target: Target | None, tell: Progress = silent) -> Pack:  # noqa: ARG002 - it fits or it doesn't
        """Let conda-pack make an archive, unless one was given or made before."""
        path = Path(self.source).absolute()
        if self.source.endswith(_ARCHIVES):
            if not path.is_file():
                raise EnvironmentUnusable(f"environment: there is no archive {path}")
            return _archive(EnvironmentKind.CONDA_PACK, path, path.name.split(".")[0])
        by_path = path.is_dir()
        if by_path and not (path / "conda-meta").is_dir():
            raise EnvironmentUnusable(
                f"environment: {path} is no conda environment: it has no folder conda-meta",
                hint="name the environment, or an archive that conda-pack made",
            )
        kept = self._kept(path) if by_path else cache_folder() / "conda" / f"{secrets.token_hex(8)}.tar.gz"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            tell("packing with conda-pack", 0, 0)
            new = kept.with_name(f"{secrets.token_hex(8)}.tar.gz")
            which = ["--prefix", path] if by_path else ["--name", self.source]
            run([*_conda_pack(), *which, "--output", new, "--quiet"])
            new.replace(kept)
        return _archive(EnvironmentKind.CONDA_PACK, kept, path.name)

    @staticmethod
    def _kept(prefix: Path) -> Path:
        """Name an archive by what conda knows of the environment: each package's record, and when it last changed."""
        check = hashlib.sha256(str(prefix).encode())
        for path in sorted((prefix / "conda-meta").iterdir()):
            check.update(f"{path.name} {path.stat().st_mtime_ns}\n".encode())
        return cache_folder() / "conda" / f"{check.hexdigest()}.tar.gz"


def _conda_pack() -> list[str]:
    if find_spec("conda_pack") is not None:
        return [sys.executable, "-m", "conda_pack.cli"]
    return [find_tool("conda-pack", _GET_CONDA_PACK)]


@dataclass(frozen=True)
class PixiPack(PackedEnvironment):
    """An environment of a pixi project, or an archive that pixi-pack has made of one.

    Args:
        source: the project's folder or pixi.toml; or the archive (environment.tar, or environment.sh, which unpacks
            itself).
        environment: of the project.
        self_extracting: bring pixi-unpack along, so that the site needn't have it.
    """

    needs_platform = False
    source: str
    environment: str = "default"
    self_extracting: bool = False

    def pack(self, target: Target | None, tell: Progress = silent) -> Pack:
        """Let pixi-pack make an archive, unless one was given or made before."""
        path = Path(self.source).absolute()
        if path.suffix in {".tar", ".sh"} and path.is_file():
            return _archive(EnvironmentKind.PIXI_PACK, path, path.stem)
        folder = path if path.is_dir() else path.parent
        manifests = [folder / name for name in ("pixi.toml", "pyproject.toml") if (folder / name).is_file()]
        lock = folder / "pixi.lock"
        if not manifests or not lock.is_file():
            raise EnvironmentUnusable(
                f"environment: {folder} has no pixi.toml with a pixi.lock", hint="run 'pixi lock'"
            )
        where = _PLATFORMS.get((target.platform.system, target.platform.machine)) if target else "linux-64"
        if where is None and target is not None:
            raise EnvironmentUnusable(f"environment: conda has no platform for {target.platform.machine}")
        suffix = ".sh" if self.self_extracting else ".tar"
        words = f"{where} {self.environment} {suffix} ".encode()
        name = hashlib.sha256(words + manifests[0].read_bytes() + lock.read_bytes()).hexdigest()
        kept = cache_folder() / "pixi" / f"{name}{suffix}"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            tell("packing with pixi-pack", 0, 0)
            new = kept.with_name(f"{secrets.token_hex(8)}{suffix}")
            options: list[str | Path] = [
                "--environment",
                self.environment,
                "--platform",
                str(where),
                "--output-file",
                new,
            ]
            options += ["--create-executable"] if self.self_extracting else []
            run([find_tool("pixi-pack", _GET_PIXI_PACK), *options, manifests[0]])
            new.replace(kept)
        return _archive(EnvironmentKind.PIXI_PACK, kept, folder.name, f"environment{suffix}")


def _archive(kind: EnvironmentKind, path: Path, title: str, name: str | None = None) -> Pack:
    return Pack.of(kind, {name or _plain(path.name): path}, title)


def _plain(name: str) -> str:
    """Leave out what can't be in the name of an environment's file."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-+!") else "_" for letter in name)
    return plain.lstrip(".-+!") or "archive"
