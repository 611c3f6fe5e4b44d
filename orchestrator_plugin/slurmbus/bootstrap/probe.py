"""What was found out about a login node: the answers of ``remote/probe.py`` as types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec

from slurmbus.bootstrap.session import Remote
from slurmbus.errors import SiteUnfit
from slurmbus_protocol.messages import Platform, SitePython

OLDEST_PYTHON = (3, 11)
PATIENCE = 120.0


class Python(msgspec.Struct, frozen=True, kw_only=True):
    """A Python of the login node."""

    version: str
    path: str
    source: str
    """``path``, or the module in which it was found."""
    implementation: str = "cpython"
    bits: int = 64
    libc: tuple[str, str] = ("", "")
    free_threaded: bool = False
    headers: bool = False
    """Whether things can be compiled for it."""
    ssl: bool = True

    @property
    def series(self) -> tuple[int, ...]:
        """E.g. (3, 12)."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])

    @property
    def fits(self) -> bool:
        """Whether the agent runs on it."""
        return self.implementation == "cpython" and self.series >= OLDEST_PYTHON and self.bits == 64  # noqa: PLR2004

    @property
    def for_wheels(self) -> SitePython:
        """The same, as choosing wheels wants it."""
        return SitePython(
            path=self.path,
            version=self.version,
            implementation=self.implementation,
            free_threaded=self.free_threaded,
        )


class SlurmFound(msgspec.Struct, frozen=True, kw_only=True):
    """Slurm, and what pyslurm could be built against."""

    version: str = ""
    sbatch: str = ""
    scrontab: bool = False
    sacct: bool = False
    headers: str = ""
    header_version: str = ""
    libraries: tuple[str, ...] = ()
    compiler: str = ""
    conf: str = ""


class Dialled(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a TCP connection got through from the login node."""

    host: str
    port: int
    open: bool
    why: str = ""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A folder in which the agent could be installed."""

    kind: str
    """``named``, ``home``, ``$SCRATCH`` and the like, ``scratch`` or ``temporary``."""
    path: str
    free: int
    free_files: int
    system: str = ""
    mount: str = ""
    device: str = ""
    writable: bool = True
    programs: bool = True
    """Whether programs may be started from there."""
    own: bool = False
    """It belongs to the user; in others' folders the agent gets one with the user's name."""
    unsafe: str = ""
    """Why other users could put other programs in the place of the agent's there; the words name the folder."""


class Usable(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a supervisor could keep the agent running, and why or why not."""

    usable: bool = False
    why: str = ""


class Supervisors(msgspec.Struct, frozen=True, kw_only=True):
    """What could keep the agent running."""

    systemd: Usable = Usable()
    cron: Usable = Usable()
    scrontab: Usable = Usable()


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found out."""

    user: str
    uid: int
    home: str
    shell: str
    host: str
    system: str
    machine: str
    kernel: str = ""
    libc: tuple[str, str] = ("", "")
    environment: dict[str, str] = {}
    """What a login shell sets, of the variables that count."""
    limits: dict[str, int] = {}
    client: str = ""
    """This machine's address as the login node sees it."""
    runtime: str = ""
    pythons: tuple[Python, ...] | None = ()
    slurm: SlurmFound | None = SlurmFound()
    index: bool | None = False
    supervisors: Supervisors | None = Supervisors()
    places: tuple[Place, ...] | None = ()
    crowd: int | None = 0
    """Other people with processes there now."""
    problems: dict[str, str] = {}
    """What couldn't be found out, and why."""

    @property
    def platform(self) -> Platform:
        """What wheels are chosen by."""
        return Platform(
            system=self.system,
            machine=self.machine,
            libc=self.libc[0],
            libc_version=self.libc[1],
            pythons=tuple(python.for_wheels for python in self.pythons or ()),
        )


def look(
    remote: Remote,
    *,
    index: str = "",
    python: str | None = None,
    folders: Sequence[str] = (),
) -> Probe:
    """Let the helper look around.

    Args:
        remote: the session.
        index: a page of a package index, to be tried from there.
        python: looked at before all others.
        folders: looked at besides those that it finds.

    Raises:
        SiteUnfit: it can't.
    """
    source = files("slurmbus.bootstrap.remote").joinpath("probe.py").read_text()
    remote.call("load", source=source)
    answer = remote.call(
        "probe",
        patience=PATIENCE,
        index=index,
        wanted=python or "",
        folders=list(folders),
    )
    return parse(answer)


def parse(answer: dict[str, Any]) -> Probe:
    """Give the answer its types; SiteUnfit when it can't be understood."""
    try:
        return msgspec.convert(answer, Probe)
    except msgspec.ValidationError as error:
        raise SiteUnfit(f"what the login node says of itself can't be understood: {error}") from error
