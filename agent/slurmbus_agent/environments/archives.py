"""Unpacks tar archives of environments; whatever they hold, nothing lands outside."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path

from slurmbus_agent.environments.paths import Budget, Hostile, Tree

_PIECE = 1024 * 1024


def unpack(archive: Path, target: Path, budget: Budget, tell: Callable[[int], None]) -> None:
    """Unpack a tar file, compressed or not.

    Modes other than "executable", owners and extended attributes are left out.

    Args:
        archive: the file.
        target: an empty folder.
        budget: what may be written.
        tell: called with the bytes of the archive that were read.

    Raises:
        Hostile: it isn't a tar file, or holds something that leads outside, devices, or too much.
    """
    tree = Tree(target, budget, archive.name)
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
            while (member := tar.next()) is not None:
                _place(tar, member, tree)
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all of them, and there may be millions
                tell(raw.tell())
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, MemoryError) as error:
        raise Hostile(f"{archive.name} can't be unpacked: {error}", hint="pack it again") from error
    tree.finish()


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, tree: Tree) -> None:
    if member.name in {".", "./"}:
        return
    if member.isdir():
        tree.folder(member.name)
    elif member.issym():
        tree.symlink(member.name, member.linkname)
    elif member.islnk():
        tree.hard_link(member.name, member.linkname)
    elif member.isreg():
        source = tar.extractfile(member)
        if source is None:
            raise Hostile(f"{tree.what}: {member.name!r} can't be read")
        with source, tree.file(member.name, executable=bool(member.mode & 0o100)) as file:
            while piece := source.read(_PIECE):
                file.write(piece)
            file.date(member.mtime)  # compiled modules name the time of their source
    else:
        raise Hostile(f"{tree.what} holds {member.name[:200]!r}, which is a device, a pipe or something else odd")
