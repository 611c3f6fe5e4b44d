"""What a packed environment consists of: its manifest, and the names of its files."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Annotated

import msgspec

from slurmbus_protocol.errors import InvalidBody, InvalidSetting
from slurmbus_protocol.messages import EnvironmentName, EnvironmentRef, NonNegative, Sha256, Value

MANIFEST_LIMIT = 8 * 1024 * 1024
"""Bytes of a manifest: 50,000 files are more than any environment has."""
NAME_HINT = "1 to 64 of a-z, 0-9, '.', '-' and '_', beginning with a letter or a digit"
SHORTEST_DIGEST = 8
"""Hex digits by which an environment may be named."""

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+!-]{0,254}$")]
"""No folder, nothing hidden; all that a wheel's name may hold. Source: packaging.python.org."""


class EnvironmentKind(StrEnum):
    """How the files of an environment become one."""

    WHEELS = "wheels"
    """Unpacked into a virtual environment of one of the site's Pythons."""
    CONDA_PACK = "conda-pack"
    """One archive that conda-pack made."""
    PIXI_PACK = "pixi-pack"
    """One archive that pixi-pack made, as a tar file or one that unpacks itself."""
    REQUIREMENTS = "requirements"
    """A requirements.txt that the site resolves by itself, over its own network."""


class EnvironmentFile(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One file of an environment; it travels as a blob."""

    name: FileName
    sha256: Sha256
    size: NonNegative


class Manifest(Value, frozen=True, kw_only=True, omit_defaults=True):
    """All of an environment; the SHA-256 of its JSON is the environment's digest."""

    kind: EnvironmentKind
    files: tuple[EnvironmentFile, ...]
    python: str = ""
    """The Python that it is for: ``3.12``, or an absolute path on the site; empty when it brings its own."""
    free_threaded: bool = False
    bytecode: bool = True
    """Compile all modules once, since nobody can later: an installed environment is read-only."""
    verify: bool = True
    """REQUIREMENTS: every requirement has a hash."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


_decoder = msgspec.json.Decoder(Manifest)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def encode_manifest(manifest: Manifest) -> bytes:
    """Give a manifest's bytes: the same ones for the same environment."""
    return msgspec.json.encode(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest; InvalidBody when it is none, or a newer version's."""
    try:
        manifest = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidBody(
            f"the environment's manifest can't be read: {error}", hint="the client may be newer: upgrade the agent"
        ) from error
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        raise InvalidBody("the environment's manifest names a file twice", hint="pack it again")
    return manifest


def reference(data: bytes, title: str = "") -> EnvironmentRef:
    """Give what a request says of an environment with this manifest."""
    return EnvironmentRef(digest=hashlib.sha256(data).hexdigest(), size=len(data), title=title)


def check_name(name: str) -> EnvironmentName:
    """Return an environment's name, or raise InvalidSetting when it can't be one."""
    if not _NAME.fullmatch(name):
        raise InvalidSetting(f"environment: {name!r} can't be a name", hint=NAME_HINT)
    return name
