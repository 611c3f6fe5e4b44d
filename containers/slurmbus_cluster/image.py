"""The cluster's image: named by what it is made of, built when it isn't there."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker.errors

from .engine import connect, engine_problem
from .errors import EngineUnavailable

REPOSITORY = "slurmbus-cluster"
CONTEXT = Path(__file__).resolve().parents[1]
"""The folder `containers/`, which is the build context."""

INPUTS = ("slurm", "slurm-compat")
"""Folders of the context that make the image what it is. The host's CA bundle doesn't."""

RELEASES = {"forky": "26.05", "trixie": "24.11", "bookworm": "22.05"}
"""Debian's releases and the Slurm that each has. Only the first has pyslurm; see slurm/Dockerfile.older."""

DEFAULT_RELEASE = "forky"

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
"""Environment variables in which a host names the CA bundle that its network wants."""

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""What Docker passes on to a build's commands and keeps out of the image."""


def image_tag(release: str = DEFAULT_RELEASE) -> str:
    """Return the image's name, with a hash of all of its inputs as the tag."""
    digest = hashlib.sha256()
    for path in _input_files(release):
        name = path.relative_to(CONTEXT).as_posix()
        executable = path.stat().st_mode & 0o100
        content = path.read_bytes()
        digest.update(f"{name}\0{executable}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{_repository(release)}:{digest.hexdigest()[:12]}"


def _repository(release: str) -> str:
    return REPOSITORY if release == DEFAULT_RELEASE else f"{REPOSITORY}-{release}"


def _dockerfile(release: str) -> str:
    return "slurm/Dockerfile" if release == DEFAULT_RELEASE else "slurm/Dockerfile.older"


def ensure_image(progress: Callable[[str], None] = print, release: str = DEFAULT_RELEASE) -> str:
    """Return the name of the cluster's image, after building it when the engine doesn't have it.

    Building from nothing takes about two minutes, after a change of configuration some seconds. Progress lines say
    what it does. Two processes never build at the same time. Raises `EngineUnavailable` when it can't be built.
    """
    if release not in RELEASES:
        raise EngineUnavailable(f"there is no image of {release!r}; there are {', '.join(RELEASES)}")
    problem = engine_problem()
    if problem:
        raise EngineUnavailable(problem)
    tag = image_tag(release)
    lock_path = Path(tempfile.gettempdir()) / f"slurmbus-image-{os.getuid()}.lock"
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = connect()
        try:
            client.images.get(tag)
        except docker.errors.ImageNotFound:
            _build(client.api, tag, release, progress)
        finally:
            client.close()
    return tag


def _build(api: docker.APIClient, tag: str, release: str, progress: Callable[[str], None]) -> None:
    """Build the image; the classic builder's interface is the one that every engine has."""
    started = time.monotonic()
    progress(f"building image {tag} (one or two minutes from nothing)")
    step = ""
    tail: list[str] = []
    events = api.build(
        fileobj=_context(release),
        custom_context=True,
        encoding="gzip",
        dockerfile=_dockerfile(release),
        tag=tag,
        # The bridge may have no route to the package servers, the host has.
        network_mode="host",
        buildargs={name: value for name in PROXY_VARIABLES if (value := os.environ.get(name))}
        | ({} if release == DEFAULT_RELEASE else {"RELEASE": release}),
        rm=True,
        forcerm=True,
        decode=True,
        timeout=3600,
    )
    for event in events:
        if "error" in event:
            raise EngineUnavailable(_explain(event["error"], release, step, tail))
        line = str(event.get("stream") or event.get("status") or "").strip()
        if line:
            tail = [*tail[-39:], line]
        if line.startswith("Step "):
            step = " ".join(line.split())
            progress(f"  {step[:110]}")
    api.tag(tag, _repository(release), "latest")
    progress(f"image {tag} built in {time.monotonic() - started:.0f} s")


def _explain(error: str, release: str, step: str, tail: list[str]) -> str:
    if " FROM " in step:
        return (
            f"The base image debian:{release} can't be had: {error}\nRun `make engine` as root: it makes base images."
        )
    return f"Building the cluster's image failed: {error}\nThe last lines were:\n" + "\n".join(tail)


def _context(release: str) -> io.BytesIO:
    """Pack the build context, with the host's CA bundle where the environment names one."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for path in _input_files(release):
            tar.add(path, arcname=path.relative_to(CONTEXT).as_posix(), filter=_normalised)
        _add_bytes(tar, "ca/README.md", (CONTEXT / "ca" / "README.md").read_bytes())
        bundle = next((Path(value) for name in CA_VARIABLES if (value := os.environ.get(name))), None)
        own = CONTEXT / "ca" / "bundle.crt"
        if own.exists():
            bundle = own
        if bundle is not None and bundle.is_file():
            _add_bytes(tar, "ca/bundle.crt", bundle.read_bytes())
    packed.seek(0)
    return packed


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o644
    tar.addfile(entry, io.BytesIO(content))


def _normalised(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Keep owner, time and umask of the checkout out of the image."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 0
    entry.mode = 0o755 if entry.mode & 0o100 else 0o644
    return entry


def _input_files(release: str) -> Iterator[Path]:
    """Give the files that this release's image is made of: a change of the others' doesn't build it again."""
    unused = {"slurm/Dockerfile", "slurm/Dockerfile.older"} - {_dockerfile(release)}
    for folder in INPUTS if release == DEFAULT_RELEASE else ("slurm",):
        paths = sorted(path for path in (CONTEXT / folder).rglob("*") if path.is_file())
        yield from (path for path in paths if path.relative_to(CONTEXT).as_posix() not in unused)
