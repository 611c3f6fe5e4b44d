"""Which wheels a locked set of packages comes to on a site, and getting them here.

Source: packaging.python.org, "pylock.toml specification" and "Platform compatibility tags".
"""

from __future__ import annotations

import base64
import hashlib
import netrc
import os
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import InvalidMarker, Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from slurmbus.environments.packing import Progress
from slurmbus.environments.tools import find_uv, run
from slurmbus_protocol.errors import EnvironmentUnusable
from slurmbus_protocol.messages import Platform, SitePython

_AT_ONCE = 4
_TIMEOUT = 60.0
_PIECE = 1024 * 1024
_OLDEST_GLIBC = 5
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""Old names of some manylinux platforms, by glibc's minor version. Source: PEP 600."""
_EPOCH = "315532800"
"""1980, the first year that a zip file knows: a wheel of the same source is the same wheel."""


@dataclass(frozen=True)
class Wheel:
    """A wheel that an environment needs."""

    name: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Source:
    """A package of which there is no wheel that fits: its source, from which a pure one may be built here."""

    package: str
    url: str
    sha256: str
    folder: Path | None = None


# ---------------------------------------------------------------------- what a site can run


def site_tags(platform: Platform, python: SitePython) -> list[Tag]:
    """Give the tags of the wheels that run on a Python of a site, best first."""
    version = (int(python.version.split(".")[0]), int(python.version.split(".")[1]))
    platforms = list(_platforms(platform))
    interpreter = f"cp{version[0]}{version[1]}"
    abis = [f"{interpreter}t"] if python.free_threaded else None
    return [
        *cpython_tags(version, abis=abis, platforms=platforms),
        *compatible_tags(version, interpreter=interpreter, platforms=platforms),
    ]


def _platforms(platform: Platform) -> Iterator[str]:
    if platform.system == "Darwin":
        numbers = [int(part) for part in platform.libc_version.split(".")]
        yield from mac_platforms((numbers[0], numbers[1] if len(numbers) > 1 else 0), platform.machine)
        return
    if platform.system != "Linux" or platform.libc not in {"glibc", "musl"}:
        raise EnvironmentUnusable(f"environment: wheels for {platform.system} with {platform.libc or 'no known libc'}?")
    kind = "manylinux" if platform.libc == "glibc" else "musllinux"
    major, minor = (int(part) for part in platform.libc_version.split(".")[:2])
    for older in range(minor, -1, -1):
        if kind == "manylinux" and older < _OLDEST_GLIBC:
            break
        yield f"{kind}_{major}_{older}_{platform.machine}"
        if kind == "manylinux" and older in _LEGACY:
            yield f"{_LEGACY[older]}_{platform.machine}"
    yield f"linux_{platform.machine}"


def marker_variables(platform: Platform, python: SitePython) -> dict[str, str]:
    """Give what environment markers are judged by. Source: PEP 508."""
    return {
        "implementation_name": python.implementation,
        "implementation_version": python.version,
        "os_name": "posix",
        "platform_machine": platform.machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": platform.system,
        "platform_version": "",
        "python_full_version": python.version,
        "python_version": ".".join(python.version.split(".")[:2]),
        "sys_platform": "darwin" if platform.system == "Darwin" else "linux",
    }


# ---------------------------------------------------------------------- choosing


def choose(lock: Mapping[str, Any], platform: Platform, python: SitePython, base: Path) -> list[Wheel | Source]:
    """Give what a pylock.toml comes to on a site.

    Args:
        lock: its content.
        platform: the site's.
        python: the site's.
        base: the folder from which its paths count.

    Raises:
        EnvironmentUnusable: a package can't be had for the site; the message names it.
    """
    tags = {tag: rank for rank, tag in reversed(list(enumerate(site_tags(platform, python))))}
    variables: dict[str, Any] = {**marker_variables(platform, python), "extra": ""}
    variables["extras"] = frozenset(lock.get("extras", ()))
    variables["dependency_groups"] = frozenset(lock.get("default-groups", ()))
    chosen: list[Wheel | Source] = []
    for package in lock.get("packages", ()):
        try:
            if "marker" in package and not Marker(package["marker"]).evaluate(variables, context="lock_file"):
                continue
        except InvalidMarker as error:
            raise EnvironmentUnusable(f"environment: the marker of {package['name']} can't be read: {error}") from error
        chosen.append(_choose(package, tags, base, python))
    return chosen


def _choose(package: Mapping[str, Any], tags: Mapping[Tag, int], base: Path, python: SitePython) -> Wheel | Source:
    name = f"{package['name']} {package.get('version', '')}".strip()
    fitting: list[tuple[int, Wheel]] = []
    for entry in package.get("wheels", ()):
        wheel = _wheel(entry, base)
        try:
            found = parse_wheel_filename(wheel.name)[3]
        except InvalidWheelFilename:
            continue
        ranks = [tags[tag] for tag in found if tag in tags]
        if ranks:
            fitting.append((min(ranks), wheel))
    if fitting:
        return min(fitting, key=lambda pair: pair[0])[1]
    if "sdist" in package:
        entry = package["sdist"]
        return Source(name, _url(entry, base), str(entry["hashes"].get("sha256", "")))
    if "directory" in package:
        return Source(name, "", "", (base / package["directory"]["path"]).resolve())
    if "archive" in package or "vcs" in package:
        raise EnvironmentUnusable(
            f"environment: {name} comes from an archive or a repository, which isn't packed",
            hint="build a wheel of it, put that into an index or a folder (find-links), and lock it from there",
        )
    raise EnvironmentUnusable(
        f"environment: there is no wheel of {name} for Python {python.version} on this site, and no source",
        hint="lock another version of it, or pack for another of the site's Pythons with python='3.x'",
    )


def _wheel(entry: Mapping[str, Any], base: Path) -> Wheel:
    url = _url(entry, base)
    name = entry.get("name") or urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
    return Wheel(str(name), url, str(entry["hashes"].get("sha256", "")), int(entry.get("size", 0)))


def _url(entry: Mapping[str, Any], base: Path) -> str:
    if "path" in entry:
        return str((base / str(entry["path"])).resolve().as_uri())
    url = str(entry["url"])
    return url if urllib.parse.urlsplit(url).scheme else str((base / url).resolve().as_uri())


# ---------------------------------------------------------------------- getting them here


class Depot:
    """Wheels that were fetched or built here, by their content.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, chosen: Iterable[Wheel | Source], tell: Progress) -> dict[str, Path]:
        """Give the files of all wheels by their names, fetching those that aren't here.

        Raises:
            EnvironmentUnusable: one can't be fetched or built.
        """
        chosen = list(chosen)
        wheels = [one for one in chosen if isinstance(one, Wheel)]
        found: dict[str, Path] = {}
        total, done = sum(wheel.size for wheel in wheels), 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for wheel, path in zip(wheels, pool.map(self._wheel, wheels), strict=True):
                done += wheel.size
                tell("fetching packages", done, total)
                found[wheel.name] = path
        for source in (one for one in chosen if isinstance(one, Source)):
            tell(f"building {source.package}", 0, 0)
            path = self._build(source)
            found[path.name] = path
        return found

    def _wheel(self, wheel: Wheel) -> Path:
        if not wheel.sha256:
            raise EnvironmentUnusable(
                f"environment: the lock has no SHA-256 of {wheel.name}", hint="lock it again from an index that has"
            )
        path = self._folder / wheel.sha256 / wheel.name
        if not path.exists():
            _fetch(wheel.url, path, wheel.sha256, wheel.name)
        return path

    def source(self, source: Source) -> Path:
        """Give the file of a package's source, fetching it when it isn't here.

        Raises:
            EnvironmentUnusable: it can't be fetched.
        """
        path = self._folder / source.sha256 / source.url.rpartition("/")[2]
        if not path.exists():
            _fetch(source.url, path, source.sha256, source.package)
        return path

    def _build(self, source: Source) -> Path:
        """Build a wheel of a pure package. One with compiled parts would be for this machine, not for the site."""
        target = self._folder / "built" / secrets.token_hex(8)
        target.mkdir(parents=True)

        path = source.folder or self.source(source)
        run([find_uv(), "build", "--quiet", "--wheel", "--out-dir", target, path], env={"SOURCE_DATE_EPOCH": _EPOCH})
        built: Path = next(target.glob("*.whl"))
        if not built.name.endswith("-none-any.whl"):
            raise EnvironmentUnusable(
                f"environment: {source.package} has compiled parts, and there is no wheel of it that runs on the site",
                hint="lock a version that has one, pack for another Python with python='3.x', build a wheel of it on "
                "the site and lock that, or let the site do all of it with resolve='site'",
            )
        return built


def _fetch(url: str, path: Path, sha256: str, what: str) -> None:
    """Fetch a file, whole and verified or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{secrets.token_hex(8)}")
    check = hashlib.sha256()
    try:
        with urllib.request.urlopen(_request(url), timeout=_TIMEOUT) as answer, new.open("wb") as file:  # noqa: S310
            while piece := answer.read(_PIECE):
                check.update(piece)
                file.write(piece)
        if check.hexdigest() != sha256:
            raise EnvironmentUnusable(f"environment: what {_plain(url)} gives isn't the {what} that was locked")
        new.rename(path)
    except (OSError, urllib.error.URLError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise EnvironmentUnusable(
            f"environment: {what} can't be fetched from {_plain(url)}: {error}",
            hint="passwords of package indexes are taken from ~/.netrc, proxies from HTTPS_PROXY",
        ) from error
    finally:
        new.unlink(missing_ok=True)


def _request(url: str) -> urllib.request.Request:
    """Ask with the user's password of this host, where there is one."""
    split = urllib.parse.urlsplit(url)
    request = urllib.request.Request(_plain(url), headers={"User-Agent": "slurmbus"})  # noqa: S310
    user, password = split.username, split.password
    if split.hostname and user is None:
        try:
            known = netrc.netrc(os.environ.get("NETRC")).authenticators(split.hostname)
        except (OSError, netrc.NetrcParseError):
            known = None
        if known is not None:
            user, password = known[0], known[2]
    if user is not None:
        coded = urllib.parse.unquote(user), urllib.parse.unquote(password or "")
        request.add_header("Authorization", f"Basic {_basic(*coded)}")
    return request


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _plain(url: str) -> str:
    """Leave out the password."""
    split = urllib.parse.urlsplit(url)
    return split._replace(netloc=split.netloc.rpartition("@")[2]).geturl()
