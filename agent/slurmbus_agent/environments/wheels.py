"""Installs wheels into a virtual environment, without pip: whatever a wheel holds, nothing lands outside.

Source of the rules: packaging.python.org, "Binary distribution format", "Recording installed projects" and
"Entry points specification".
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from slurmbus_agent.environments.paths import Hostile, Tree, parts
from slurmbus_agent.environments.pythons import Python

_PIECE = 1024 * 1024
_LONGEST_SHEBANG = 127
"""Linux before 5.1 cuts longer ones off. Source: execve(2)."""
_LARGEST_TEXT = 64 * 1024 * 1024
_HASHES = ("sha256", "sha384", "sha512")
_OURS = re.compile(r"(pyvenv\.cfg|lib64(/.*)?|bin/python[0-9.]*t?)$")
"""What no wheel may put in the place of our own."""
_ENTRY = re.compile(r"(?P<module>[\w.]+)\s*:\s*(?P<name>[\w.]+)\s*(\[.*\])?")
_SCRIPT = """\
# -*- coding: utf-8 -*-
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({name}())
"""


@dataclass
class Venv:
    """The virtual environment that wheels go into.

    Args:
        tree: writes its files.
        prefix: the folder in which it will be found.
        python: what it is built on.
    """

    tree: Tree
    prefix: Path
    python: Python

    @property
    def shebang(self) -> bytes:
        """The first line of its scripts; a longer path goes by way of the shell."""
        program = f"{self.prefix}/bin/python"
        if len(program) + 3 <= _LONGEST_SHEBANG and " " not in program:
            return f"#!{program}\n".encode()
        return f"""#!/bin/sh\n'''exec' "{program}" "$0" "$@"\n' '''\n""".encode()

    def create(self) -> None:
        """Make it, empty. A virtual environment is no more than this: the module venv may be missing on Debian."""
        home = Path(self.python.path).parent
        settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {self.python.version}\n"
        with self.tree.file("pyvenv.cfg") as file:
            file.write(settings.encode())
        self.tree.folder("bin")
        self.tree.folder(self.python.library)
        self.tree.symlink("lib64", "lib")


def link_python(venv: Venv) -> None:
    """Make the symlinks to the site's Python, the only ones that lead outside; when everything else is there."""
    folder = venv.prefix / "bin"
    (folder / "python").symlink_to(venv.python.path)
    for name in ("python3", f"python{venv.python.series}"):
        (folder / name).symlink_to("python")


def unpacked_size(wheel: Path) -> tuple[int, int]:
    """Give the bytes and the number of files that a wheel says it holds."""
    with _opened(wheel) as archive:
        entries = archive.infolist()
        return sum(entry.file_size for entry in entries), len(entries)


def install(wheel: Path, name: str, venv: Venv, tell: Callable[[int], None]) -> None:
    """Install one wheel.

    Args:
        wheel: the file.
        name: its name, which says for what it was built.
        venv: where it goes.
        tell: called with the bytes of its content, as they are written.

    Raises:
        Hostile: its content isn't what its RECORD says, or leads outside.
    """
    venv.tree.what = name
    try:
        with _opened(wheel) as archive:
            _Wheel(archive, name, venv).install(tell)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise Hostile(f"{name} can't be unpacked: {error}", hint="pack it again") from error


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError) as error:
        raise Hostile(f"{wheel.name} is no wheel: {error}", hint="pack it again") from error


class _Wheel:
    """One wheel that is being installed."""

    def __init__(self, archive: zipfile.ZipFile, name: str, venv: Venv) -> None:
        self._archive = archive
        self._name = name
        self._venv = venv
        self._info = self._find_info()
        self._unlisted = {f"{self._info}/{file}" for file in ("RECORD", "RECORD.jws", "RECORD.p7s")}
        self._installed: list[tuple[str, str, str]] = []
        """Rows of the RECORD that is written in the end."""

    def install(self, tell: Callable[[int], None]) -> None:
        self._check_version()
        left = self._record()
        for entry in self._archive.infolist():
            path = "/".join(parts(entry.filename, self._name))
            if entry.is_dir() or path in self._unlisted:
                continue
            if path not in left:
                raise Hostile(f"{self._name} holds {path!r}, which its RECORD doesn't name, or names for another file")
            tell(self._place(entry, path, *left.pop(path)))
        for path in left:
            raise Hostile(f"{self._name}: {path!r} is named by its RECORD and isn't there")
        for name, module, function in self._scripts():
            script = _SCRIPT.format(module=module, first=function.split(".")[0], name=function)
            self._write(f"bin/{name}", self._venv.shebang + script.encode(), executable=True)
        self._write(f"{self._venv.python.library}/{self._info}/INSTALLER", b"slurmbus\n")
        self._write_record()

    # ------------------------------------------------------------------ what the wheel says of itself

    def _find_info(self) -> str:
        tops = {entry.split("/", 1)[0] for entry in self._archive.namelist()}
        folders = [top for top in tops if top.endswith(".dist-info")]
        if len(folders) != 1 or _project(folders[0]) != _project(self._name):
            raise Hostile(f"{self._name} has no .dist-info folder of its own name, or more than one")
        return folders[0]

    def _text(self, file: str) -> str:
        try:
            entry = self._archive.getinfo(f"{self._info}/{file}")
        except KeyError as error:
            raise Hostile(f"{self._name} has no {self._info}/{file}") from error
        if entry.file_size > _LARGEST_TEXT:
            raise Hostile(f"{self._name}: {file} is of {entry.file_size:,} bytes")
        return self._archive.read(entry).decode()

    def _check_version(self) -> None:
        version = str(Parser().parsestr(self._text("WHEEL")).get("Wheel-Version", ""))
        if not version.startswith("1."):
            raise Hostile(f"{self._name} is of wheel version {version or 'unknown'}, which can't be read here")

    def _record(self) -> dict[str, tuple[str, str]]:
        """Give the algorithm and the hash of each file that the wheel says it holds."""
        found: dict[str, tuple[str, str]] = {}
        for row in csv.reader(io.StringIO(self._text("RECORD"))):
            if not row or row[0] in self._unlisted:
                continue
            algorithm, _, value = row[1].partition("=") if len(row) > 1 else ("", "", "")
            if algorithm not in _HASHES:
                raise Hostile(f"{self._name}: its RECORD has no hash of {row[0]!r} that can be relied on")
            found[row[0]] = (algorithm, value.rstrip("="))
        return found

    def _scripts(self) -> Iterator[tuple[str, str, str]]:
        """Give the name, the module and the function of each script that the wheel asks for."""
        if f"{self._info}/entry_points.txt" not in self._archive.NameToInfo:
            return
        entries = configparser.RawConfigParser(delimiters=("=",), strict=False)
        entries.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
        try:
            entries.read_string(self._text("entry_points.txt"))
        except configparser.Error as error:
            raise Hostile(f"{self._name}: its entry_points.txt can't be read: {error}") from error
        for group in ("console_scripts", "gui_scripts"):
            for name, value in entries.items(group) if entries.has_section(group) else ():
                entry = _ENTRY.fullmatch(value.strip())
                if entry is None or "/" in name:
                    raise Hostile(f"{self._name}: the script {name!r} can't be made of {value!r}")
                yield name, entry["module"], entry["name"]

    # ------------------------------------------------------------------ what is written

    def _target(self, path: str) -> str:
        """Tell where a file goes, relative to the environment."""
        python = self._venv.python
        data = f"{self._info.removesuffix('.dist-info')}.data/"
        if not path.startswith(data):
            return f"{python.library}/{path}"
        scheme, _, rest = path.removeprefix(data).partition("/")
        folder = {
            "purelib": python.library,
            "platlib": python.library,
            "scripts": "bin",
            "headers": f"include/site/python{python.series}/{self._info.split('-')[0]}",
            "data": ".",
        }.get(scheme)
        target = posixpath.normpath(f"{folder}/{rest}")
        if folder is None or not rest or _OURS.match(target):
            raise Hostile(f"{self._name} holds {path!r}, which has no place in an environment")
        return target

    def _place(self, entry: zipfile.ZipInfo, path: str, algorithm: str, expected: str) -> int:
        target = self._target(path)
        is_script = ".data/scripts/" in path
        check = hashlib.new(algorithm)
        executable = is_script or bool(entry.external_attr >> 16 & 0o100)
        own = hashlib.sha256()
        size = 0
        with self._archive.open(entry) as source, self._venv.tree.file(target, executable=executable) as file:
            while piece := source.read(_PIECE):
                check.update(piece)
                if is_script and size == 0:
                    piece = self._with_shebang(piece)
                own.update(piece)
                size += file.write(piece)
        if _encoded(check) != expected:
            raise Hostile(f"{self._name}: the content of {path!r} isn't what its RECORD says")
        self._note(target, own, size)
        return entry.file_size

    def _with_shebang(self, start: bytes) -> bytes:
        line, newline, rest = start.partition(b"\n")
        return self._venv.shebang + rest if newline and re.match(rb"#!pythonw?\b", line) else start

    def _write(self, target: str, content: bytes, *, executable: bool = False) -> None:
        with self._venv.tree.file(target, executable=executable) as file:
            file.write(content)
        self._note(target, hashlib.sha256(content), len(content))

    def _note(self, target: str, check: hashlib._Hash, size: int) -> None:
        path = posixpath.relpath(target, self._venv.python.library)
        self._installed.append((path, f"sha256={_encoded(check)}", str(size)))

    def _write_record(self) -> None:
        """Say what was installed, for importlib.metadata."""
        record = f"{self._info}/RECORD"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*self._installed, (record, "", "")])
        with self._venv.tree.file(f"{self._venv.python.library}/{record}") as file:
            file.write(text.getvalue().encode())


def _project(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.split("-", maxsplit=1)[0]).lower()


def _encoded(check: hashlib._Hash) -> str:
    return base64.urlsafe_b64encode(check.digest()).rstrip(b"=").decode()
