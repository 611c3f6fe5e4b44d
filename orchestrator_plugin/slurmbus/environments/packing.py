"""What packing an environment means, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from slurmbus_protocol.blobs import hash_file
from slurmbus_protocol.environments import EnvironmentFile, EnvironmentKind, Manifest, encode_manifest, reference
from slurmbus_protocol.errors import EnvironmentUnusable
from slurmbus_protocol.messages import EnvironmentRef, Platform, SitePython

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much it is (0: nobody knows)."""


def silent(_doing: str, _done: int, _total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Target:
    """What an environment is packed for."""

    platform: Platform

    def python(self, wanted: str = "") -> SitePython:
        """Give the site's Python to pack for: the preferred one, or the first that fits.

        Args:
            wanted: a version: ``3.12``; or a path on the site.

        Raises:
            EnvironmentUnusable: there is none; the message names those that there are.
        """
        for python in self.platform.pythons:
            if wanted in {"", python.version, python.path} or python.version.startswith(f"{wanted}."):
                return python
        there = ", ".join(sorted({python.version for python in self.platform.pythons})) or "none"
        raise EnvironmentUnusable(
            f"environment: the site has no Python {wanted}, only {there}",
            hint="name one of these, or let the site's agent know of another one: "
            '[environments] pythons = ["/opt/python/3.12/bin/python3"] in its SITE.settings.toml',
        )


@dataclass(frozen=True)
class Pack:
    """A packed environment: its manifest, and where its files lie here."""

    manifest: bytes
    sources: dict[str, Path]
    """The files here, by their SHA-256."""
    title: str

    @classmethod
    def of(cls, kind: EnvironmentKind, files: dict[str, Path], title: str, **settings: object) -> Pack:
        """Hash the files and write the manifest.

        Args:
            kind: what they become.
            files: by the names that they have in the environment.
            title: for people.
            settings: further fields of the manifest.
        """
        entries, sources = [], {}
        for name, path in sorted(files.items()):
            digest, size = hash_file(path)
            entries.append(EnvironmentFile(name=name, sha256=digest, size=size))
            sources[digest] = path
        manifest = Manifest(kind=kind, files=tuple(entries), **settings)  # type: ignore[arg-type]
        return cls(encode_manifest(manifest), sources, title)

    @property
    def ref(self) -> EnvironmentRef:
        """What a request says of it."""
        return reference(self.manifest, self.title)


class PackedEnvironment(ABC):
    """An environment that travels. Another kind is one class with two methods."""

    needs_platform: ClassVar[bool] = True
    """Whether packing has to know the site's platform; then a site that can't be asked is an error."""

    @abstractmethod
    def pack(self, target: Target | None, tell: Progress = silent) -> Pack:
        """Put the environment together here; what was put together before isn't made again.

        Args:
            target: what it is for; None when nothing has to be known of that.
            tell: called with what takes long.

        Raises:
            SlurmbusError: it can't be packed; the message says why and what to do.
        """
