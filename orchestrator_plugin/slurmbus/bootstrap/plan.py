"""What will be done at a site, chosen from its settings and what was found there (pure)."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

from slurmbus.bootstrap.login import Login
from slurmbus.bootstrap.probe import Place, Probe, Python, Supervisors, Usable
from slurmbus.errors import SiteUnfit

OWN_FOLDER = ".slurmbus/.agent"
"""In the home; no site's spool can have this name, for names begin with a letter or a digit."""
NEEDED = 96 * 1024 * 1024
"""Bytes that an installation takes at most while it is made: about 30 MB of wheels, unpacked and with bytecode."""
NEEDED_FILES = 3000
PYSLURM = {"25.11": "25.11.2", "26.05": "25.11.2"}
"""The version of pyslurm for a series of Slurm; for others there is none in the package index."""
ORDER = ("systemd", "cron", "scrontab")
"""A crontab keeps the agent on the login node; an entry of scrontab is a job of its own, which costs the account."""


class Choice(msgspec.Struct, frozen=True):
    """What was chosen, and why."""

    what: str
    why: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be done."""

    python: Python | None
    """On which the agent runs; None: one is brought along."""
    folder: Place
    install_folder: str
    supervisor: Choice
    scheduler: Choice
    pyslurm: Choice
    """``build`` or ``none``."""
    home_is_full: bool = False
    """Nothing more fits into the home: keys and spool go beside the agent."""
    notes: tuple[str, ...] = ()


def make(probe: Probe, login: Login, scheduler: str) -> Plan:
    """Choose.

    Args:
        probe: what was found.
        login: what was asked for.
        scheduler: the profile's: auto, native, commands or local.

    Raises:
        SiteUnfit: something can't be had; the message says what, and what else could be done.
    """
    python = choose_python(probe, login)
    place, folder = choose_folder(probe, login)
    pyslurm = choose_pyslurm(probe, login, python, scheduler)
    return Plan(
        python=python,
        folder=place,
        install_folder=folder,
        supervisor=choose_supervisor(probe.supervisors or Supervisors(), login.supervisor),
        scheduler=choose_scheduler(probe, scheduler, pyslurm),
        pyslurm=pyslurm,
        home_is_full=any(one.kind == "home" and not _has_room(one) for one in probe.places or ()),
        notes=tuple(notes(probe, place)),
    )


def choose_python(probe: Probe, login: Login) -> Python | None:
    """Give the newest Python on which the agent runs, or the one that was named; None when one has to be brought.

    Raises:
        SiteUnfit: the named one can't be used.
    """
    there = probe.pythons or ()
    if login.agent_python is not None:
        named = next((one for one in there if one.path == login.agent_python), None) or (there[0] if there else None)
        if named is None or not named.fits:
            found = f"is {named.implementation} {named.version}" if named else "can't be started"
            raise SiteUnfit(
                f"{login.agent_python} on {probe.host} {found}; the agent needs CPython 3.11 or newer",
                hint="name another one with --agent-python, or leave it out",
            )
        return named
    if login.python_archive is not None:
        return None
    fitting = [one for one in there if one.fits and not one.free_threaded]
    # pyslurm can be compiled only for one with headers; newest first among equals.
    return max(fitting, key=lambda one: (one.headers, one.series)) if fitting else None


def choose_folder(probe: Probe, login: Login) -> tuple[Place, str]:
    """Give where the agent is installed.

    Raises:
        SiteUnfit: nowhere, or not where it was asked for; the message names the file system and what is needed.
    """
    places = probe.places or ()
    if login.install_folder is not None:
        named = next((one for one in places if one.path == login.install_folder), None)
        if named is None:
            raise SiteUnfit(
                f"{login.install_folder} on {probe.host} can't be looked at", hint="is it an absolute path?"
            )
        _check_safe(named, probe)
        _check_room(named, probe)
        if not named.programs:
            raise SiteUnfit(
                f"programs can't be started from {named.path}: its file system ({named.mount}) is mounted noexec",
                hint=f"choose another folder with --install-folder{_others(probe)}",
            )
        return named, named.path
    home = next((one for one in places if one.kind == "home"), None)
    if home is not None and home.programs:
        _check_safe(home, probe, _others(probe))
        _check_room(home, probe, _others(probe))
        return home, str(PurePosixPath(home.path) / OWN_FOLDER)
    fitting = [place for place in places if place.kind not in {"home", "named"} and _fits(place)]
    for place in fitting:
        if not place.unsafe:
            return place, _below(place, probe)
    unsafe = "".join(f"; {words}" for words in dict.fromkeys(place.unsafe for place in fitting))
    raise SiteUnfit(
        f"programs can't be started from the home on {probe.host}, and no other folder with room was found{unsafe}",
        hint="name one with --install-folder",
    )


def _below(place: Place, probe: Probe) -> str:
    """Give where the agent goes below a place."""
    own = PurePosixPath(place.path) if place.own else PurePosixPath(place.path) / probe.user
    return str(own / "slurmbus-agent")


def _fits(place: Place) -> bool:
    return place.programs and place.writable and _has_room(place)


def _check_safe(place: Place, probe: Probe, others: str = "") -> None:
    if place.unsafe:
        raise SiteUnfit(
            f"the agent would run what other users of {probe.host} may put into {place.path}: {place.unsafe}",
            hint=f"name a folder that only you can write to, and everything above it, with --install-folder{others}",
        )


def _has_room(place: Place) -> bool:
    # Some file systems don't count files, and say 0.
    return place.free >= NEEDED and (place.free_files >= NEEDED_FILES or place.free_files == 0)


def _check_room(place: Place, probe: Probe, others: str = "") -> None:
    if not place.writable:
        raise SiteUnfit(f"you may not write to {place.path} on {probe.host}", hint="choose another --install-folder")
    if not _has_room(place):
        raise no_room(place, probe.host, others)


def no_room(place: Place, host: str, others: str = "") -> SiteUnfit:
    """Say which file system is full, and what is needed."""
    return SiteUnfit(
        f"{place.path} on {host} has no room: {place.free / 2**20:.0f} MiB are left on its file system "
        f"({place.mount}, {place.system}), {NEEDED / 2**20:.0f} MiB are needed",
        hint=f"make room, ask for more quota, or choose another folder with --install-folder{others}",
    )


def _others(probe: Probe) -> str:
    good = [one for one in probe.places or () if _fits(one) and not one.unsafe and one.kind != "temporary"]
    return f", e.g. {_below(good[0], probe)}" if good else ""


def choose_supervisor(there: Supervisors, wanted: str) -> Choice:
    """Give what keeps the agent running.

    Raises:
        SiteUnfit: the one that was asked for can't be used.
    """
    if wanted == "detached":
        return Choice("detached", "as you said")
    if wanted != "auto":
        found: Usable = getattr(there, wanted)
        if not found.usable:
            raise SiteUnfit(f"the supervisor {wanted!r} can't be used there: {found.why}", hint="leave it to 'auto'")
        return Choice(wanted, "as you said")
    for name in ORDER:
        found = getattr(there, name)
        if found.usable:
            return Choice(name, found.why)
    reasons = "; ".join(f"{name}: {getattr(there, name).why}" for name in ORDER)
    return Choice("detached", f"nothing else is there ({reasons})")


def supervisor_for_way(chosen: Choice, way: str, wanted: str) -> Choice:
    """Give what keeps the agent running, now that its way to the bus is known: a tunnel ends on the login node.

    Raises:
        SiteUnfit: the one that was asked for runs it on another node.
    """
    if chosen.what != "scrontab" or way != "tunnel":
        return chosen
    if wanted == "scrontab":
        raise SiteUnfit(
            "scrontab runs the agent on a compute node, and the tunnel to the bus ends on the login node",
            hint="use --supervisor detached, or a bus that the cluster reaches itself",
        )
    return Choice("detached", "scrontab would run the agent on a compute node, where the tunnel doesn't end")


def choose_pyslurm(probe: Probe, login: Login, python: Python | None, scheduler: str) -> Choice:
    """Say whether pyslurm is built there, or why not."""
    slurm = probe.slurm
    if scheduler in {"commands", "local"} or login.pyslurm is False:
        return Choice("none", "pyslurm isn't asked for")
    if slurm is None or not slurm.version:
        return Choice("none", "there is no Slurm")
    series = ".".join(slurm.version.split(".")[:2])
    if series not in PYSLURM:
        return Choice("none", f"there is no pyslurm of Slurm {series}")
    if not slurm.headers:
        return Choice("none", "Slurm's headers (slurm/slurm.h) aren't installed there")
    if slurm.header_version and not slurm.header_version.startswith(series):
        return Choice("none", f"the headers there are of Slurm {slurm.header_version}, not of {slurm.version}")
    if not slurm.libraries:
        return Choice("none", "libslurm.so isn't there")
    if not slurm.compiler:
        return Choice("none", "there is no C compiler")
    if python is None or not python.headers:
        return Choice("none", "the Python there has no headers (Python.h)")
    if not login.pyslurm:
        return Choice(
            "none", "compiling pyslurm takes minutes of the login node's CPU; it would fit: --pyslurm does it"
        )
    return Choice("build", f"Slurm {slurm.version}, its headers and a compiler are there")


def choose_scheduler(probe: Probe, wanted: str, pyslurm: Choice) -> Choice:
    """Give what the agent will submit to, as far as it can be said before it is there.

    Raises:
        SiteUnfit: there is no Slurm.
    """
    if wanted == "local":
        return Choice("local", "as you said: jobs are processes of the login node")
    if not (probe.slurm and probe.slurm.version):
        raise SiteUnfit(
            f"there is no Slurm on {probe.host}: sbatch isn't on a login shell's PATH",
            hint="is it a login node of the cluster? is Slurm in a module? then load it in your ~/.bash_profile there; "
            "for a machine without Slurm use --scheduler local",
        )
    if wanted != "auto":
        return Choice(wanted, "as you said")
    if pyslurm.what == "build":
        return Choice("native", "pyslurm, built there")
    return Choice("commands", f"sbatch, squeue and sacct of Slurm {probe.slurm.version}, since {pyslurm.why}")


def notes(probe: Probe, place: Place) -> list[str]:
    """Say what a person should know."""
    found = []
    if place.kind == "temporary":
        found.append(f"the agent is installed in {place.path}, which the site may clean: then 'slurmbus up' again")
    elif place.kind not in {"home", "named"}:
        found.append("programs can't be started from the home, so the agent is installed elsewhere")
    skipped = [one for one in probe.places or () if one.kind not in {"home", "named"} and _fits(one) and one.unsafe]
    if place.kind not in {"home", "named"} and skipped:
        found += [f"not there: {words}" for words in dict.fromkeys(one.unsafe for one in skipped)]
    cpu = probe.limits.get("cpu_seconds", -1)
    if cpu > 0:
        found.append(f"processes of a login may use {cpu / 60:.0f} CPU minutes there, then the site ends them")
    for name, words in probe.problems.items():
        found.append(f"{name} couldn't be looked at: {words}")
    return found
