"""A framework that is only named gets its launcher."""

from __future__ import annotations

import dagster as dg
import pytest

from dagster_slurmbus import launchers
from dagster_slurmbus.frameworks import FRAMEWORKS, launcher_for
from dagster_slurmbus.launchers import ComputeLauncher


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
