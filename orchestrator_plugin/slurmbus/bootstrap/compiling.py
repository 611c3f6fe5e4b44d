"""Compiling pyslurm on the site, against the site's own Slurm; what that needs is taken along.

pyslurm is of Slurm's licence, and of one Slurm: nothing of it travels compiled, and where it can't be compiled, Slurm's
commands do. For a Slurm that is newer than pyslurm, the headers in ``compat/`` stand before the site's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

from slurmbus.bootstrap.installing import Tell, libraries
from slurmbus.bootstrap.plan import PYSLURM
from slurmbus.bootstrap.probe import Python, SlurmFound
from slurmbus.bootstrap.session import Remote
from slurmbus.environments.requirements import cache_folder, lock
from slurmbus.environments.wheels import Depot, Source, choose
from slurmbus.errors import SiteUnfit
from slurmbus_protocol.messages import Platform

TOOLS = ("cython", "packaging", "pip", "setuptools", "wheel")
PATIENCE = 900.0
"""Seconds: a minute on an idle machine with two cores."""
_AT_ONCE = "[build_ext]\nparallel=2\n"
_TRY = "import os; os.environ['PYSLURM_DISABLE_AUTO_INIT'] = '1'; import pyslurm; print(pyslurm.__version__)"


@dataclass(frozen=True)
class Ingredients:
    """What compiling needs, as files of this machine by their names."""

    source: Path
    tools: Mapping[str, Path]
    beside: Mapping[str, Path]
    """Wheels that pyslurm itself needs."""


def series_of(slurm: SlurmFound) -> str:
    """Give a Slurm's series: 25.11 of 25.11.2."""
    return ".".join(slurm.version.split(".")[:2])


def gather(platform: Platform, python: Python, slurm: SlurmFound, tell: Tell) -> Ingredients:
    """Get what is needed, here.

    Raises:
        EnvironmentUnusable: something can't be had.
    """
    tell("getting what pyslurm is compiled with", 0, 0)
    depot = Depot(cache_folder() / "wheels")
    tools = choose(_locked(TOOLS, platform, python), platform, python.for_wheels, Path())
    wanted = choose(
        _locked((f"pyslurm=={PYSLURM[series_of(slurm)]}",), platform, python), platform, python.for_wheels, Path()
    )
    sources = [one for one in wanted if isinstance(one, Source)]
    wheels = [one for one in wanted if not isinstance(one, Source)]
    return Ingredients(depot.source(sources[0]), depot.get(tools, tell), depot.get(wheels, tell))


def _locked(names: tuple[str, ...], platform: Platform, python: Python) -> dict[str, object]:
    folder = cache_folder() / "agent"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{names[0].replace('=', '-')}.in"
    path.write_text("".join(f"{name}\n" for name in names))
    return lock(path, platform, python.for_wheels)


def compile_into(
    remote: Remote, target: str, python: Python, slurm: SlurmFound, ingredients: Ingredients, tell: Tell
) -> str:
    """Compile pyslurm into a version that is being installed, and give its version.

    Args:
        remote: the session.
        target: the version's folder.
        python: of that version.
        slurm: what was found there.
        ingredients: what it needs.
        tell: hears what is going on.

    Raises:
        SiteUnfit: it can't be compiled, or can't be loaded; nothing of it stays.
    """
    work = f"{target}/compiling"
    try:
        _bring(remote, work, libraries(target, python), ingredients)
        tell("compiling pyslurm against the site's Slurm (a minute or two)", 0, 0)
        done = remote.run(
            [
                *("nice", "-n", "19", f"{target}/bin/python", "-m", "pip", "install", "--no-index", "--no-deps"),
                *("--no-build-isolation", "--disable-pip-version-check", "--quiet", "--no-cache-dir"),
                *("--target", libraries(target, python), f"{work}/{ingredients.source.name}"),
            ],
            env=_environment(work, slurm),
            timeout=PATIENCE,
        )
        if done.code != 0:
            raise SiteUnfit(f"pyslurm can't be compiled there: {done.words}")
    finally:
        remote.call("remove", path=work)
    tried = remote.run([f"{target}/bin/python", "-c", _TRY])
    if tried.code != 0:
        remote.call("remove", path=f"{libraries(target, python)}/pyslurm")
        raise SiteUnfit(f"pyslurm can't be loaded there: {tried.words}")
    return tried.out.strip()


def _bring(remote: Remote, work: str, beside: str, ingredients: Ingredients) -> None:
    remote.call("folder", path=f"{work}/tools")
    for wheels, where in ((ingredients.tools, f"{work}/tools"), (ingredients.beside, beside)):
        for name, path in wheels.items():
            remote.send(path, f"{work}/{name}", lambda _size: None)
            remote.call("unzip", path=f"{work}/{name}", target=where)
    remote.send(ingredients.source, f"{work}/{ingredients.source.name}", lambda _size: None)
    remote.write(f"{work}/distutils.cfg", _AT_ONCE.encode())
    remote.call("folder", path=f"{work}/compat/slurm")
    for entry in files("slurmbus.bootstrap").joinpath("compat/slurm").iterdir():
        remote.write(f"{work}/compat/slurm/{entry.name}", entry.read_bytes())


def _environment(work: str, slurm: SlurmFound) -> dict[str, str | None]:
    include = f"{work}/compat" if series_of(slurm) not in PYSLURM[series_of(slurm)] else slurm.headers
    return {
        "PYTHONPATH": f"{work}/tools",
        "DIST_EXTRA_CONFIG": f"{work}/distutils.cfg",
        "CFLAGS": "-O1 -g0 -w",
        "CPATH": slurm.headers,  # after what stands before: the headers in compat/ go on with the next ones
        "SLURM_INCLUDE_DIR": include,
        "SLURM_LIB_DIR": str(PurePosixPath(slurm.libraries[0]).parent),
        "TMPDIR": work,
    }
