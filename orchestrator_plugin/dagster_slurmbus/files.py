"""Files that go with a job: found and checked before anything is submitted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dagster_slurmbus.values import inside, wrong
from slurmbus_protocol import blobs
from slurmbus_protocol.messages import FileRef

StrPath = str | os.PathLike[str]
Files = Iterable[StrPath] | Mapping[str, StrPath]
"""Paths here, which keep their names; or a mapping from the name in the job's working directory to the path here."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file here and where it goes."""

    path: Path
    target: str
    """Relative to the job's working directory."""

    def ref(self) -> FileRef:
        """Give what a request says of the file, without uploading it."""
        digest, size = blobs.hash_file(self.path)
        return FileRef(path=self.target, sha256=digest, size=size, executable=os.access(self.path, os.X_OK))


def local_file(path: StrPath, field: str, target: str | None = None) -> LocalFile:
    """Check that a file is there; ``dagster.Failure`` names the field when it isn't."""
    found = Path(path)
    if not found.exists():
        at = "" if found.is_absolute() else f" (looked for in {Path.cwd()})"
        raise wrong(f"{field}: there is no file {os.fspath(path)!r} on this machine{at}; nothing was submitted")
    if not found.is_file():
        raise wrong(f"{field}: {os.fspath(path)!r} is no file; name the files in it one by one")
    if not os.access(found, os.R_OK):
        raise wrong(f"{field}: {os.fspath(path)!r} can't be read by this process; nothing was submitted")
    return LocalFile(found, inside(target if target is not None else found.name, field))


def local_files(files: Files | None, field: str) -> list[LocalFile]:
    """Check several files."""
    if files is None:
        return []
    if isinstance(files, str | os.PathLike):
        raise wrong(f"{field} is a list of paths, not one path: write [{os.fspath(files)!r}]")
    if isinstance(files, Mapping):
        return [local_file(path, field, target) for target, path in files.items()]
    return [local_file(path, field) for path in files]


def without_duplicates(files: Iterable[LocalFile]) -> tuple[LocalFile, ...]:
    """Check that no two files go to the same place; the same file named twice goes once."""
    by_target: dict[str, LocalFile] = {}
    for file in files:
        other = by_target.setdefault(file.target, file)
        if other.path.resolve() != file.path.resolve():
            raise wrong(
                f"two files would both become {file.target!r} in the job's working directory: {other.path} and "
                f"{file.path}; give one of them another name with a mapping {{'new-name': path}}"
            )
    return tuple(by_target.values())
