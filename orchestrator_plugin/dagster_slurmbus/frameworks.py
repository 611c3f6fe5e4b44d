"""Which launcher a call gets: the one that it gives, one for a framework that is only named, or the default one."""

from __future__ import annotations

from difflib import get_close_matches

from dagster_slurmbus.launchers import (
    BashLauncher,
    ComputeLauncher,
    MpiLauncher,
    RayLauncher,
    SparkLauncher,
    TorchrunLauncher,
)
from dagster_slurmbus.values import wrong

FRAMEWORKS: dict[str, type[ComputeLauncher]] = {
    "bash": BashLauncher,
    "python": BashLauncher,
    "ray": RayLauncher,
    "mpi": MpiLauncher,
    "torchrun": TorchrunLauncher,
    "spark": SparkLauncher,
}
"""By the name that stands in ``resource_requirements``; a launcher of your own may be added."""


_OF_THE_SITE = ("preamble", "python")
"""Settings that launchers of all frameworks need alike."""


def launcher_of_call(
    given: ComputeLauncher | None, framework: str | None, default: ComputeLauncher | None
) -> ComputeLauncher:
    """Choose the launcher of one call.

    Args:
        given: the call's own. What it doesn't set is taken from the default one, when that is of the same class.
        framework: the one that ``resource_requirements`` names, where no launcher is given.
        default: the resource's, or the site's.

    Raises:
        dagster.Failure: there is no launcher for the framework.
    """
    if given is not None:
        return _over(given, default)
    return launcher_for(framework, default) or default or BashLauncher()


def launcher_for(framework: str | None, default: ComputeLauncher | None = None) -> ComputeLauncher | None:
    """Give the launcher of a framework, or None when none is named.

    That is the default launcher when it is one for this framework. Otherwise its ``python`` and ``preamble`` hold for
    the framework's own launcher, too: they say what the site needs.
    """
    if framework is None:
        return None
    kind = FRAMEWORKS.get(framework.lower())
    if kind is None:
        close = get_close_matches(framework.lower(), FRAMEWORKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(FRAMEWORKS))}"
        raise wrong(f"resource_requirements: there is no launcher for the framework {framework!r}: {hint}")
    if default is not None and _kind_of(default) is kind:
        return default
    names = [name for name in _OF_THE_SITE if name in kind.model_fields and hasattr(default, name)]
    return kind(**{name: getattr(default, name) for name in names})


def _kind_of(launcher: ComputeLauncher) -> type[ComputeLauncher] | None:
    """Give the framework's class that a launcher is of, or is derived from; the nearest one counts."""
    return next((kind for kind in type(launcher).__mro__ if kind in FRAMEWORKS.values()), None)


def _over(given: ComputeLauncher, default: ComputeLauncher | None) -> ComputeLauncher:
    kind = type(given)
    if type(default) is not kind:
        return given
    chosen = given.model_fields_set
    return kind(**{name: getattr(given if name in chosen else default, name) for name in kind.model_fields})
