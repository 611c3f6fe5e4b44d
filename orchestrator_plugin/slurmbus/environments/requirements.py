"""Environments of Python packages: a uv project, a requirements.txt, or a pylock.toml."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slurmbus.environments.packing import Pack, PackedEnvironment, Progress, Target, silent
from slurmbus.environments.tools import find_uv, run
from slurmbus.environments.wheels import Depot, choose
from slurmbus_protocol.environments import EnvironmentKind
from slurmbus_protocol.errors import EnvironmentUnusable, InvalidSetting
from slurmbus_protocol.messages import Platform, SitePython

_CHOICES = ("here", "site")
_NOT_SOURCE = frozenset({"__pycache__", "build", "dist", "node_modules", "target", "venv"})
_GLIBCS = (17, 28, *range(31, 41))
"""Minor versions of glibc that uv knows as platforms. Source: uv pip compile --help."""


class _Packages(PackedEnvironment):
    """What the kinds here have in common: a set of packages is locked, its wheels chosen, fetched, and packed."""

    path: str
    python: str
    resolve: str
    bytecode: bool

    def pack(self, target: Target | None, tell: Progress = silent) -> Pack:
        """Put the environment together here."""
        if self.resolve not in _CHOICES:
            raise InvalidSetting(f"environment: resolve={self.resolve!r} is neither 'here' nor 'site'")
        if target is None:
            raise InvalidSetting("environment: packages can't be chosen without knowing the site's platform")
        python = target.python(self.python)
        kept = _Kept.of(self._inputs(), self._words(), target.platform, python)
        pack = kept.read()
        if pack is None:
            tell("finding out what is needed", 0, 0)
            pack = self._pack_for_site(kept, python) if self.resolve == "site" else self._pack(target, python, tell)
            kept.write(pack)
        return pack

    def _pack(self, target: Target, python: SitePython, tell: Progress) -> Pack:
        lock, base = self._lock(target.platform, python)
        depot = Depot(cache_folder() / "wheels")
        files = depot.get(choose(lock, target.platform, python, base), tell)
        return Pack.of(EnvironmentKind.WHEELS, files, self._title(), **self._about(python))

    def _pack_for_site(self, kept: _Kept, python: SitePython) -> Pack:
        text = self._exported()
        path = kept.path.with_suffix(".requirements.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return Pack.of(
            EnvironmentKind.REQUIREMENTS,
            {"requirements.txt": path},
            self._title(),
            verify="--hash=" in text,
            **self._about(python),
        )

    def _about(self, python: SitePython) -> dict[str, object]:
        wanted = python.path if self.python.startswith("/") else ".".join(python.version.split(".")[:2])
        return {"python": wanted, "free_threaded": python.free_threaded, "bytecode": self.bytecode}

    @abstractmethod
    def _inputs(self) -> list[Path]:
        """Give the files that decide what comes out."""

    @abstractmethod
    def _words(self) -> list[str]:
        """Give the settings that decide what comes out."""

    @abstractmethod
    def _lock(self, platform: Platform, python: SitePython) -> tuple[dict[str, Any], Path]:
        """Give the content of a pylock.toml, and the folder from which its paths count."""

    @abstractmethod
    def _exported(self) -> str:
        """Give a requirements.txt for the site."""

    @abstractmethod
    def _title(self) -> str: ...


@dataclass(frozen=True)
class UvLock(_Packages):
    """What a project's ``uv.lock`` names.

    Args:
        path: the project's folder, or its uv.lock or pyproject.toml.
        groups: dependency groups that go along; the default ones don't.
        extras: extras of the project.
        project: the project itself goes along as a wheel that is built here.
        python: of the site: ``3.12``, or an absolute path there; by default the one that its agent prefers.
        resolve: ``here`` ships the wheels; ``site`` lets the site fetch them by itself.
        bytecode: compile all modules once, at the installation.
    """

    path: str
    groups: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    project: bool = False
    python: str = ""
    resolve: str = "here"
    bytecode: bool = True

    @property
    def _folder(self) -> Path:
        path = Path(self.path).absolute()
        folder = path if path.is_dir() else path.parent
        if not (folder / "uv.lock").is_file():
            raise EnvironmentUnusable(f"environment: there is no uv.lock in {folder}", hint="make it with 'uv lock'")
        return folder

    def _inputs(self) -> list[Path]:
        folder = self._folder
        return [folder / "uv.lock", folder / "pyproject.toml"]

    def _words(self) -> list[str]:
        how = [str(self.groups), str(self.extras), self.resolve, str(self.bytecode)]
        return ["uv-lock", *how, *(_state_of(self._folder) if self.project else ())]

    def _title(self) -> str:
        try:
            content = tomllib.loads((self._folder / "pyproject.toml").read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise EnvironmentUnusable(
                f"environment: {self._folder / 'pyproject.toml'} can't be read: {error}"
            ) from error
        return str(content.get("project", {}).get("name", self._folder.name))

    def _export(self, form: str) -> str:
        chosen = [word for group in self.groups for word in ("--group", group)]
        chosen += [word for extra in self.extras for word in ("--extra", extra)]
        chosen += ["--no-editable"] if self.project else ["--no-emit-project"]
        quiet = ["--quiet", "--no-header", "--no-default-groups"]
        return run([find_uv(), "export", "--frozen", "--format", form, *quiet, *chosen], cwd=self._folder)

    def _lock(self, platform: Platform, python: SitePython) -> tuple[dict[str, Any], Path]:  # noqa: ARG002
        return tomllib.loads(self._export("pylock.toml")), self._folder

    def _exported(self) -> str:
        if self.project:
            raise InvalidSetting(
                "environment: project=True doesn't go with resolve='site': the site doesn't have the project",
                hint="leave one of the two out",
            )
        return self._export("requirements.txt")


@dataclass(frozen=True)
class Requirements(_Packages):
    """What a requirements.txt (with or without hashes), a requirements.in or a pylock.toml names.

    What an unpinned requirement comes to is found out once for each content of the file, and kept.

    Args:
        path: the file.
        python: of the site: ``3.12``, or an absolute path there; by default the one that its agent prefers.
        resolve: ``here`` ships the wheels; ``site`` lets the site fetch them by itself.
        bytecode: compile all modules once, at the installation.
    """

    path: str
    python: str = ""
    resolve: str = "here"
    bytecode: bool = True

    @property
    def _file(self) -> Path:
        path = Path(self.path).absolute()
        if not path.is_file():
            raise EnvironmentUnusable(f"environment: there is no file {path}")
        return path

    def _inputs(self) -> list[Path]:
        return [self._file]

    def _words(self) -> list[str]:
        return ["requirements", self.resolve, str(self.bytecode)]

    def _title(self) -> str:
        name = self._file.stem
        return self._file.parent.name if name in {"requirements", "pylock"} else name

    def _lock(self, platform: Platform, python: SitePython) -> tuple[dict[str, Any], Path]:
        if self._file.suffix == ".toml":
            return _toml(self._file), self._file.parent
        return lock(self._file, platform, python), self._file.parent

    def _exported(self) -> str:
        if self._file.suffix == ".toml":
            raise InvalidSetting(
                "environment: a pylock.toml isn't resolved by the site; give its requirements.txt, or leave resolve out"
            )
        return self._file.read_text()


def lock(requirements: Path, platform: Platform, python: SitePython) -> dict[str, Any]:
    """Find out what a file of requirements comes to on a site, as the content of a pylock.toml.

    Raises:
        EnvironmentUnusable: it can't be found out; the message has uv's own words.
    """
    words = ["--format", "pylock.toml", "--python-version", ".".join(python.version.split(".")[:2])]
    words += ["--python-platform", _uv_platform(platform), "--quiet", "--no-header"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pylock.toml"
        run([find_uv(), "pip", "compile", requirements, *words, "--output-file", target], cwd=requirements.parent)
        return _toml(target)


def _state_of(project: Path) -> Iterator[str]:
    """Tell when each file of a project was last changed; what was built or installed into its folder doesn't count."""
    for folder, folders, files in os.walk(project):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_SOURCE)
        for name in sorted(files):
            status = os.stat(os.path.join(folder, name), follow_symlinks=False)  # noqa: PTH116, PTH118
            yield f"{folder}/{name} {status.st_size} {status.st_mtime_ns}"


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise EnvironmentUnusable(f"environment: {path} can't be read: {error}") from error


def _uv_platform(platform: Platform) -> str:
    machine = {"arm64": "aarch64"}.get(platform.machine, platform.machine)
    if platform.system == "Darwin":
        return f"{machine}-apple-darwin"
    if platform.libc == "musl":
        return f"{machine}-unknown-linux-musl"
    minor = int(platform.libc_version.split(".")[1])
    known = max((version for version in _GLIBCS if version <= minor), default=_GLIBCS[0])
    return f"{machine}-manylinux_2_{known}"


# ---------------------------------------------------------------------- what was packed before


def cache_folder() -> Path:
    """Give the folder where packed environments and their files are kept; it may be removed at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SLURMBUS_CACHE") or f"{base}/slurmbus").expanduser()


class _Record(msgspec.Struct):
    manifest: str
    sources: dict[str, str]
    title: str


class _Kept:
    """What was packed before from the same files for the same platform."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, inputs: list[Path], words: list[str], platform: Platform, python: SitePython) -> _Kept:
        check = hashlib.sha256(json.dumps([1, words, platform.system, platform.machine, platform.libc]).encode())
        check.update(json.dumps([platform.libc_version, python.path, python.version, python.free_threaded]).encode())
        for path in inputs:
            try:
                check.update(str(path).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise EnvironmentUnusable(f"environment: {path} can't be read: {error.strerror}") from error
        return cls(cache_folder() / "environments" / f"{check.hexdigest()}.json")

    def read(self) -> Pack | None:
        try:
            kept = msgspec.json.decode(self.path.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return None
        sources = {digest: Path(path) for digest, path in kept.sources.items()}
        return Pack(kept.manifest.encode(), sources, kept.title) if all(map(Path.exists, sources.values())) else None

    def write(self, pack: Pack) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sources = {digest: str(path) for digest, path in pack.sources.items()}
        new = self.path.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.json.encode(_Record(pack.manifest.decode(), sources, pack.title)))
        new.replace(self.path)
