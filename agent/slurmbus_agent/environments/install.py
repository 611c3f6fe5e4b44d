"""``python -m slurmbus_agent.environments.install``: makes an environment of fetched files, in a process of its own.

It is niced, dies with its agent, and says on stdout what it does, one JSON object a line; the last one is ``{"ready":
…}`` or ``{"error": …}``. What it shall do comes as one JSON object on stdin.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from slurmbus_agent.environments import archives, pythons, wheels
from slurmbus_agent.environments.paths import Budget, Tree, make_read_only
from slurmbus_agent.environments.store import FILES, PREFIX
from slurmbus_agent.spool_writing import typed
from slurmbus_protocol.embedded import die_with_parent
from slurmbus_protocol.environments import EnvironmentKind, Manifest, decode_manifest
from slurmbus_protocol.errors import EnvironmentUnusable, SlurmbusError

NICE = 15
_MEMORY = 4 * 1024**3
"""Bytes of addresses while archives are unpacked: their headers may ask for any amount."""
_TELL_EVERY = 1.0
_TAIL = 1500
"""Characters of a failed tool's output that are shown."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be installed."""

    folder: str
    """The attempt's folder in the store, with manifest and files."""
    pythons: tuple[str, ...] = ()
    max_bytes: int
    max_files: int
    pixi_unpack: str = "pixi-unpack"
    uv: str = "uv"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What was installed."""

    size: int
    files: int
    python: str = ""


class Progress:
    """Says how far it is, not too often."""

    def __init__(self) -> None:
        self._told = 0.0
        self._doing = ""
        self.done = 0
        self.total = 0

    def begin(self, doing: str, total: int = 0) -> None:
        """Say what is being done now."""
        self._doing, self.done, self.total, self._told = doing, 0, total, 0.0
        self._say()

    def add(self, size: int) -> None:
        """Count something."""
        self.at(self.done + size)

    def at(self, done: int) -> None:
        """Say how much is done."""
        self.done = done
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY:
            self._told = now
            say({"doing": self._doing, "done": self.done, "total": self.total})


def say(words: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


class Installer:
    """Installs one environment."""

    def __init__(self, work: Work, manifest: Manifest, progress: Progress) -> None:
        self._work = work
        self._manifest = manifest
        self._progress = progress
        self._folder = Path(work.folder)
        self._prefix = self._folder / PREFIX
        self._budget = Budget(work.max_bytes, work.max_files)

    def install(self) -> Done:
        """Do it all; afterwards nothing but the commit is left.

        Raises:
            SlurmbusError: it can't be installed; the message says why.
        """
        make = {
            EnvironmentKind.WHEELS: self._wheels,
            EnvironmentKind.CONDA_PACK: self._conda_pack,
            EnvironmentKind.PIXI_PACK: self._pixi_pack,
            EnvironmentKind.REQUIREMENTS: self._requirements,
        }[self._manifest.kind]
        with typed(self._prefix):
            version = make()
            shutil.rmtree(self._folder / FILES)
            self._progress.begin("making it read-only")
            size, files = make_read_only(self._prefix)
            _sync(self._prefix)
        return Done(size=size, files=files, python=version)

    def _file(self, index: int = 0) -> Path:
        return self._folder / FILES / self._manifest.files[index].sha256

    def _venv(self) -> wheels.Venv:
        self._prefix.mkdir(mode=0o700)
        there = pythons.discover(self._work.pythons)
        python = pythons.choose(there, self._manifest.python, free_threaded=self._manifest.free_threaded)
        venv = wheels.Venv(Tree(self._prefix, self._budget, "the environment"), self._prefix, python)
        venv.create()
        return venv

    # ------------------------------------------------------------------ wheels

    def _wheels(self) -> str:
        venv = self._venv()
        files = [(self._folder / FILES / file.sha256, file.name) for file in self._manifest.files]
        total = sum(wheels.unpacked_size(path)[0] for path, _ in files)
        self._progress.begin("unpacking", total)
        with _bounded_memory():
            for path, name in files:
                wheels.install(path, name, venv, self._progress.add)
                path.unlink()  # it would take up its room twice
        self._finish_venv(venv)
        return venv.python.version

    def _finish_venv(self, venv: wheels.Venv) -> None:
        venv.tree.finish()
        if not (self._prefix / "bin" / "python").is_symlink():
            wheels.link_python(venv)
        self._run([self._prefix / "bin" / "python", "-c", "import sys"], "the environment's Python doesn't start")
        if self._manifest.bytecode:
            self._progress.begin("compiling")
            self._compile(venv)

    def _compile(self, venv: wheels.Venv) -> None:
        """Compile all modules; some packages carry files that aren't meant for this Python, so failures don't count."""
        words = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", venv.python.library]
        subprocess.run(
            [self._prefix / "bin" / "python", "-I", *words],
            cwd=self._prefix,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )

    # ------------------------------------------------------------------ others' tools

    def _conda_pack(self) -> str:
        archive = self._file()
        self._prefix.mkdir(mode=0o700)
        self._progress.begin("unpacking", archive.stat().st_size)
        with _bounded_memory():
            archives.unpack(archive, self._prefix, self._budget, self._progress.at)
        archive.unlink()
        unpack, python = self._prefix / "bin" / "conda-unpack", self._prefix / "bin" / "python"
        if unpack.is_file():
            self._progress.begin("putting its paths right")
            program = python if python.exists() else Path(sys.executable)
            self._run([program, unpack], "conda-unpack failed")
        elif not (self._prefix / "conda-meta").is_dir():
            raise EnvironmentUnusable(
                f"{self._manifest.files[0].name} is no archive of conda-pack: it has no conda-meta folder",
                hint="make it with conda-pack",
            )
        return self._version_of(python)

    def _pixi_pack(self) -> str:
        archive = self._file()
        self._progress.begin("unpacking with pixi-unpack")
        if self._manifest.files[0].name.endswith(".sh"):
            archive.chmod(0o500)
            command: list[str | Path] = [archive]
        else:
            tool = shutil.which(self._work.pixi_unpack)
            if tool is None:
                raise EnvironmentUnusable(
                    f"there is no {self._work.pixi_unpack} on this site, which unpacks what pixi-pack packed",
                    hint="install it there ('pixi global install pixi-unpack', or its release from "
                    "github.com/Quantco/pixi-pack) and name it with pixi_unpack in [environments] of the agent's "
                    "SITE.settings.toml; or pack with self_extracting=True, which brings it along",
                )
            named = archive.with_name(self._manifest.files[0].name)  # it looks at the suffix
            archive.rename(named)
            command = [tool, named]
        self._run([*command, "--output-directory", self._folder], "pixi-unpack failed")
        if not (self._prefix / "conda-meta").is_dir():
            raise EnvironmentUnusable(
                f"pixi-unpack made no environment in {self._prefix}", hint="is it a newer version?"
            )
        return self._version_of(self._prefix / "bin" / "python")

    def _requirements(self) -> str:
        venv = self._venv()
        venv.tree.finish()
        wheels.link_python(venv)
        self._progress.begin("resolving and fetching packages on the site")
        hashes = ["--require-hashes"] if self._manifest.verify else []
        where: list[str | Path] = [*hashes, "-r", self._file()]
        uv = shutil.which(self._work.uv)
        python = self._prefix / "bin" / "python"
        if uv is not None:
            own: list[str | Path] = ["--cache-dir", self._folder / "cache", "--link-mode", "copy", "--no-progress"]
            self._run([uv, "pip", "install", "--python", python, *own, *where], "uv failed")
            shutil.rmtree(self._folder / "cache", ignore_errors=True)
        else:
            pip = self._pip(venv.python.path)
            own = ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
            self._run([*pip, "--python", python, "install", *own, *where], "pip failed")
        self._finish_venv(venv)
        return venv.python.version

    @staticmethod
    def _pip(python: str) -> list[str]:
        for program in (python, sys.executable):
            words = [program, "-m", "pip"]
            if subprocess.run([*words, "--version"], capture_output=True, check=False).returncode == 0:
                return words
        raise EnvironmentUnusable(
            "there is neither uv nor pip on this site, which resolve='site' needs",
            hint="install uv there (docs.astral.sh/uv), or leave resolve='site' out: then the wheels come from here",
        )

    def _version_of(self, python: Path) -> str:
        described = pythons.ask(str(python)) if python.exists() else None
        return described.version if described is not None else ""

    def _run(self, command: Sequence[str | Path], problem: str) -> None:
        path = f"{self._prefix / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")
        env = {name: value for name, value in os.environ.items() if name not in left_out}
        done = subprocess.run(
            command,
            cwd=self._folder,
            env={**env, "PATH": path, "PYTHONNOUSERSITE": "1"},
            check=False,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        if done.returncode != 0:
            raise EnvironmentUnusable(f"{problem} (exit code {done.returncode}): {done.stdout[-_TAIL:].strip()}")


@contextlib.contextmanager
def _bounded_memory() -> Any:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _sync(path: Path) -> None:
    """Make everything durable before anybody can find it. Source: syncfs(2)."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(AttributeError, OSError):  # not on this system
            ctypes.CDLL(None).syncfs(folder)
    finally:
        os.close(folder)


def main() -> int:
    """Install what stdin says."""
    os.umask(0o077)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    work = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    try:
        manifest = decode_manifest((Path(work.folder) / "manifest.json").read_bytes())
        done = Installer(work, manifest, Progress()).install()
    except SlurmbusError as error:
        say({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        return 1
    say({"ready": msgspec.to_builtins(done)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
