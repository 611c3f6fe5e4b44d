"""Installing the agent on the site: one folder a version, and a symlink for each site that is turned in one step.

::

    <install folder>/versions/<version>-<hash>/   a virtual environment, and the file "complete" when all is there
    <install folder>/sites/<site>/current         → the version that the site's agent runs from
    <install folder>/sites/<site>/slurmbus-agent  starts the command with what a login shell sets
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from slurmbus.bootstrap.plan import NEEDED, Plan, no_room
from slurmbus.bootstrap.probe import Probe, Python
from slurmbus.bootstrap.session import Remote, RemoteNoRoom
from slurmbus.errors import SiteUnfit
from slurmbus_protocol.blobs import hash_file

Tell = Callable[[str, int, int], None]
CHECK_PATIENCE = 120.0
"""Seconds for the first start of a new Python installation: nothing of it is in any cache yet."""

SETTLED = 3600.0
"""Seconds after which a version that no site uses isn't waited for by any set-up."""


@dataclass(frozen=True)
class Layout:
    """Where things lie on the site.

    Args:
        folder: the install folder.
        site: the site's name.
    """

    folder: str
    site: str

    def version(self, name: str) -> str:
        """Give the folder of a version."""
        return f"{self.folder}/versions/{name}"

    @property
    def own(self) -> str:
        """What belongs to this site."""
        return f"{self.folder}/sites/{self.site}"

    @property
    def current(self) -> str:
        """The symlink to the version that runs."""
        return f"{self.own}/current"

    @property
    def command(self) -> str:
        """The script that starts the agent's command."""
        return f"{self.own}/slurmbus-agent"


def version_name(wheels: Mapping[str, Path], python: Python, extra: str = "") -> str:
    """Name what is installed by its content: the same name is the same installation."""
    check = hashlib.sha256(f"{python.path}\0{python.version}\0{extra}".encode())
    for name, path in sorted(wheels.items()):
        check.update(f"\0{name}\0{hash_file(path)[0]}".encode())
    return f"{version('slurmbus-agent')}-{check.hexdigest()[:12]}"


def is_complete(remote: Remote, layout: Layout, name: str) -> bool:
    """Tell whether a version is there, whole."""
    return bool(remote.call("look", path=f"{layout.version(name)}/complete")["kind"])


def install(
    remote: Remote,
    layout: Layout,
    name: str,
    wheels: Mapping[str, Path],
    plan: Plan,
    tell: Tell,
    more: Callable[[str], None] = lambda _target: None,
) -> None:
    """Put a version there. It is visible when it is whole; when it can't be finished, nothing of it stays.

    Args:
        remote: the session.
        layout: where.
        name: of the version.
        wheels: what it is made of.
        plan: with the Python.
        tell: hears how far it is.
        more: called with the version's folder, to put in what else belongs there.

    Raises:
        SiteUnfit: there is no room, or it doesn't start; the message says why.
    """
    assert plan.python is not None  # noqa: S101 - one was chosen or brought before
    target = layout.version(name)
    try:
        remote.call("room", path=layout.folder, size=NEEDED)
        remote.call("remove", path=target)
        remote.call("folder", path=target, new=True)
        _make_environment(remote, target, plan.python)
        _bring(remote, target, wheels, plan.python, tell)
        more(target)
        _try(remote, target)
        remote.write(f"{target}/complete", f"{name}\n".encode(), 0o600)
        remote.call("keep", path=target)
    except RemoteNoRoom as error:
        remote.call("remove", path=target)
        raise no_room(plan.folder, "the login node") from error


def libraries(target: str, python: Python) -> str:
    """Give the folder of modules of a version."""
    return f"{target}/lib/python{'.'.join(map(str, python.series))}/site-packages"


def _make_environment(remote: Remote, target: str, python: Python) -> None:
    """A virtual environment is no more than this: the module venv may be missing on Debian."""
    home = PurePosixPath(python.path).parent
    remote.call("folder", path=f"{target}/bin")
    remote.call("folder", path=libraries(target, python))
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {python.version}\n"
    remote.write(f"{target}/pyvenv.cfg", settings.encode())
    for name, leads_to in (("python", python.path), ("python3", "python")):
        remote.call("link", path=f"{target}/bin/{name}", target=leads_to)


def _bring(remote: Remote, target: str, wheels: Mapping[str, Path], python: Python, tell: Tell) -> None:
    total = sum(path.stat().st_size for path in wheels.values())
    done = 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        tell("sending the agent", done, total)

    remote.call("folder", path=f"{target}/wheels")
    for name, path in wheels.items():
        there = f"{target}/wheels/{name}"
        remote.send(path, there, moved)
        remote.call("unzip", path=there, target=libraries(target, python))
    remote.call("remove", path=f"{target}/wheels")


def _try(remote: Remote, target: str) -> None:
    python = f"{target}/bin/python"
    done = remote.run([python, "-m", "slurmbus_agent", "--version"], timeout=CHECK_PATIENCE)
    if done.code != 0:
        raise SiteUnfit(
            f"the agent can't be started from {target}: {done.words}",
            hint="try another Python with --agent-python, or another folder with --install-folder",
        )
    compiled = remote.run([python, "-m", "compileall", "-q", "-j", "1", f"{target}/lib"], timeout=CHECK_PATIENCE)
    if compiled.code != 0:
        raise SiteUnfit(f"the agent's modules can't be compiled in {target}: {compiled.words}")


def command_script(layout: Layout, probe: Probe) -> str:
    """Give the script that starts the agent's command: cron and systemd know nothing of a login shell's PATH."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(probe.environment.items()))
    return (
        "#!/bin/sh\n# Written by 'slurmbus up': starts the command of the agent with what a login shell sets.\n"
        f'{exports}exec {shlex.quote(layout.current)}/bin/python -m slurmbus_agent "$@"\n'
    )


def point(remote: Remote, layout: Layout, name: str, script: str) -> bool:
    """Turn the site's symlink to a version, and write its script; False when both were so before."""
    remote.call("folder", path=layout.own)
    changed = False
    if remote.read(layout.command) != script.encode():
        remote.write(layout.command, script.encode(), 0o700)
        changed = True
    target = f"../../versions/{name}"
    if remote.call("look", path=layout.current)["target"] != target:
        remote.call("link", path=layout.current, target=target)
        changed = True
    return changed


def pointed(remote: Remote, layout: Layout) -> str:
    """Give the name of the version that a site's agent runs from, or nothing."""
    return PurePosixPath(remote.call("look", path=layout.current)["target"]).name


def tidy(remote: Remote, layout: Layout, *also: str) -> list[str]:
    """Remove the versions that no site of this folder uses, and give their names.

    One that isn't whole, or hasn't been for long, may be what another site's set-up is about to use.

    Args:
        remote: the session.
        layout: whose folder.
        also: versions that are known not to be used by another set-up.
    """
    used = {
        PurePosixPath(remote.call("look", path=f"{layout.folder}/sites/{site}/current")["target"]).name
        for site in remote.call("names", path=f"{layout.folder}/sites")
    }
    removed = []
    for name in remote.call("names", path=f"{layout.folder}/versions"):
        if name in used:
            continue
        whole = remote.call("look", path=f"{layout.version(name)}/complete")
        if name in also or (whole["kind"] and whole["age"] > SETTLED):
            remote.call("remove", path=layout.version(name))
            removed.append(name)
    return removed
