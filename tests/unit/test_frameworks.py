"""A framework that is only named gets its launcher."""

from __future__ import annotations

import dagster as dg
import pytest

from dagster_slurmbus import launchers
from dagster_slurmbus.frameworks import FRAMEWORKS, launcher_for, launcher_of_call
from dagster_slurmbus.launchers import BashLauncher, ComputeLauncher, RayLauncher, TorchrunLauncher


def test_every_launcher_has_a_name() -> None:
    assert launcher_for(None) is None
    for name, kind in FRAMEWORKS.items():
        assert type(launcher_for(name.upper())) is kind
    offered = {getattr(launchers, name) for name in launchers.__all__} - {ComputeLauncher}
    assert set(FRAMEWORKS.values()) == offered


def test_an_unknown_framework_is_told_with_the_known_ones() -> None:
    with pytest.raises(dg.Failure, match="did you mean 'torchrun'"):
        launcher_for("torch-run")
    with pytest.raises(dg.Failure, match="known: bash, mpi"):
        launcher_for("fortran")


RAY = RayLauncher(python="/opt/payload/bin/python", preamble="module load cuda", start_timeout=300)


class OwnRay(RayLauncher):
    """A launcher of one's own for a framework that is known."""


def test_the_default_launcher_starts_its_own_framework() -> None:
    own = OwnRay(interface="ib0")
    assert launcher_of_call(None, "ray", RAY) is RAY
    assert launcher_of_call(None, "Ray", own) is own
    assert launcher_of_call(None, None, RAY) is RAY
    assert launcher_of_call(None, None, None) == BashLauncher()


def test_another_framework_gets_what_the_site_needs() -> None:
    """Also the parent class of the default one: who names bash wants no Ray."""
    site = {"python": RAY.python, "preamble": RAY.preamble}
    assert launcher_of_call(None, "bash", RAY) == BashLauncher(**site)
    assert launcher_of_call(None, "torchrun", RAY) == TorchrunLauncher(**site)
    assert launcher_of_call(None, "ray", BashLauncher(interpreter="Rscript", **site)) == RayLauncher(**site)
    assert launcher_of_call(None, "ray", None) == RayLauncher()


def test_a_call_s_launcher_goes_over_the_default_one_of_its_class() -> None:
    merged = launcher_of_call(RayLauncher(num_gpus_per_node=2, preamble=""), "bash", RAY)
    assert merged == RayLauncher(python=RAY.python, preamble="", start_timeout=300, num_gpus_per_node=2)
    for given in (OwnRay(num_gpus_per_node=2), BashLauncher()):
        assert launcher_of_call(given, None, RAY) is given
