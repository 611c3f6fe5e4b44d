"""The folder of environments: finding, committing, naming, measuring and removing them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from slurmbus_agent.environments.lock import InstallLock
from slurmbus_agent.spool_removal import Obstacle, Pace, Removal, move, opened
from slurmbus_agent.spool_writing import make_folder, sync_folder, typed, write
from slurmbus_protocol import subjects
from slurmbus_protocol.environments import SHORTEST_DIGEST, Manifest, check_name, encode_manifest
from slurmbus_protocol.errors import UnknownEnvironment

STORE = "store"
NAMES = "names"
TRASH = "trash"
PREFIX = "env"
FILES = "files"
_SHORT = 20
"""Hex digits of a digest in a folder's name: shebangs and conda's prefixes have little room. All of it is compared."""


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an installation (file ``info.json``)."""

    digest: str
    title: str
    kind: str
    prefix: str
    """Relative to the installation's folder."""
    python: str = ""
    size: int = 0
    files: int = 0
    installed_at: float = 0.0


_info_decoder = msgspec.json.Decoder(Info)


@dataclass(frozen=True)
class Installation:
    """An installed environment."""

    folder: Path
    """Its own, in the store."""
    link: Path
    """By which it is found."""
    info: Info
    used_at: float

    @property
    def prefix(self) -> Path:
        """Where its ``bin`` is."""
        return self.folder / self.info.prefix


class Store:
    """The environments in one folder.

    Every method works on the shared file system and may take long: call them in a thread.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def prepare(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.root, *(self.root / name for name in (STORE, NAMES, TRASH))):
            make_folder(folder)

    def lock(self, digest: str) -> InstallLock:
        """Give the lock of whoever installs this."""
        return InstallLock(self.root / f"{_short(digest)}.lock")

    # ------------------------------------------------------------------ finding

    def find(self, digest: str) -> Installation | None:
        """Give an installation, or None when there is none."""
        found = self._read(self.root / _short(digest))
        return found if found is not None and found.info.digest == digest else None

    def all(self) -> list[Installation]:
        """Give all installations, the last used one first."""
        try:
            links = [path for path in self.root.iterdir() if path.is_symlink() and _is_short(path.name)]
        except FileNotFoundError:
            return []
        found = [installation for path in links if (installation := self._read(path)) is not None]
        return sorted(found, key=lambda installation: installation.used_at, reverse=True)

    def _read(self, link: Path) -> Installation | None:
        try:
            folder = self.root / link.readlink()
            path = folder / "info.json"
            info = _info_decoder.decode(path.read_bytes())
            return Installation(folder, link, info, path.stat().st_mtime)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:  # no symlink
                return None
            raise

    def resolve(self, name: str) -> Installation:
        """Give the installation with this name, or whose digest begins so.

        Raises:
            UnknownEnvironment: there is none, or more than one.
        """
        with contextlib.suppress(FileNotFoundError):
            found = self._read(self.root / (self.root / NAMES / check_name(name)).readlink().name)
            if found is not None:
                return found
        fitting = [one for one in self.all() if len(name) >= SHORTEST_DIGEST and one.info.digest.startswith(name)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UnknownEnvironment(f"environment: {name!r} fits {len(fitting)} environments", hint="write more of it")
        raise UnknownEnvironment(f"environment: this site has none that is called {name!r}")

    def names(self) -> dict[str, list[str]]:
        """Give the names of each digest, by its short form."""
        names: dict[str, list[str]] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in sorted((self.root / NAMES).iterdir()):
                if path.is_symlink():
                    names.setdefault(path.readlink().name, []).append(path.name)
        return names

    def name(self, digest: str, name: str) -> None:
        """Let a name stand for this environment from now on."""
        new = self.root / NAMES / f".{secrets.token_hex(8)}"
        with typed(self.root / NAMES):
            new.symlink_to(f"../{_short(digest)}")
            new.rename(self.root / NAMES / check_name(name))

    @staticmethod
    def touch(installation: Installation) -> None:
        """Note that it is used now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(installation.folder / "info.json")

    # ------------------------------------------------------------------ installing

    def begin(self, digest: str, manifest: Manifest) -> Path:
        """Make the folder of an attempt, with the files that earlier ones had fetched; call it with the lock."""
        self.prepare()
        folder = self.root / STORE / f"{_short(digest)}.{secrets.token_hex(4)}"
        make_folder(folder)
        make_folder(folder / FILES)
        write(folder / "manifest.json", encode_manifest(manifest))
        for other in (self.root / STORE).glob(f"{_short(digest)}.*"):
            if other != folder and not self._is_committed(other):
                for file in manifest.files:
                    with contextlib.suppress(OSError):
                        (other / FILES / file.sha256).rename(folder / FILES / file.sha256)
                self.discard(other)
        return folder

    def commit(self, folder: Path, info: Info) -> Installation:
        """Make an attempt the installation that everybody finds, unless another was first; give the one that stands."""
        write(folder / "info.json", msgspec.json.encode(info))
        folder.chmod(0o500)
        link = self.root / _short(info.digest)
        target = f"{STORE}/{folder.name}"
        with typed(link):
            try:
                link.symlink_to(target)
            except FileExistsError:
                stands = self.find(info.digest)
                if stands is None:  # it was damaged; what was made just now is whole
                    new = link.with_name(f".{folder.name}")
                    new.symlink_to(target)
                    new.rename(link)
                elif stands.folder.name != folder.name:  # the same name: NFS repeated our own call
                    self.discard(folder)
                    return stands
            sync_folder(self.root)
        return Installation(folder, link, info, time.time())

    def _is_committed(self, folder: Path) -> bool:
        try:
            return (self.root / folder.name.partition(".")[0]).readlink().name == folder.name
        except OSError:
            return False

    def discard(self, folder: Path) -> None:
        """Remove a folder of the store; an interruption leaves it in the trash."""
        gone = self._throw_away(folder)
        with opened(self.root, TRASH) as (trash,):
            Removal(trash, str(self.root / TRASH), lambda: None).remove(gone)

    def _throw_away(self, folder: Path) -> str:
        gone = f"{folder.name}.{secrets.token_hex(4)}"
        move(self.root, folder.name, STORE, TRASH, gone)
        return gone

    # ------------------------------------------------------------------ removing

    def remove(self, installation: Installation) -> None:
        """Remove an installation: nobody finds it any more, and its files wait in the trash."""
        with typed(installation.link), contextlib.suppress(FileNotFoundError):
            installation.link.unlink()
            sync_folder(self.root)
        for name in self.names().get(installation.link.name, []):
            with contextlib.suppress(FileNotFoundError):
                (self.root / NAMES / name).unlink()
        self._throw_away(installation.folder)

    def tidy(self, older_than: float) -> None:
        """Throw away what interrupted attempts left, when it is older than so many seconds."""
        now = time.time()
        with contextlib.suppress(FileNotFoundError):
            for folder in (self.root / STORE).iterdir():
                if not self._is_committed(folder) and now - folder.stat().st_mtime > older_than:
                    self._throw_away(folder)

    def empty_trash(self, pace: Pace) -> list[Obstacle]:
        """Remove what was thrown away, and give what can't be removed."""
        if not (self.root / TRASH).is_dir():
            return []
        with opened(self.root, TRASH) as (trash,):
            removal = Removal(trash, str(self.root / TRASH), pace)
            for name in os.listdir(trash):
                removal.remove(name)
            return removal.obstacles


def _short(digest: str) -> str:
    return subjects.check_sha256(digest)[:_SHORT]


def _is_short(name: str) -> bool:
    return len(name) == _SHORT and all(letter in "0123456789abcdef" for letter in name)
