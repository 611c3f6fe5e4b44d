"""The schedulers that have to keep the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from contract.commands_site import CommandsSite
from contract.native_site import NativeSite
from contract.sites import LocalSite, Site

SITES = {
    "local": "",
    "native": "cluster",
    "commands": "cluster",
    "commands-24.11": "cluster_trixie",
    "commands-22.05": "cluster_bookworm",
}
"""The schedulers, and the fixture of the cluster on which each works."""


def params() -> Iterator[ParameterSet]:
    for name, cluster in SITES.items():
        yield pytest.param(name, marks=pytest.mark.cluster if cluster else ())


def _slurm_site(kind: str, request: pytest.FixtureRequest) -> Site:
    cluster = request.getfixturevalue(SITES[kind])
    return NativeSite(cluster) if kind == "native" else CommandsSite(cluster)


@pytest.fixture
def local_site(tmp_path: Path) -> Site:
    """Local processes."""
    return LocalSite(tmp_path)


@pytest.fixture(params=params())
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """One of the schedulers."""
    return _slurm_site(request.param, request) if SITES[request.param] else LocalSite(tmp_path)


@pytest.fixture
def slurm_sites(request: pytest.FixtureRequest) -> list[Site]:
    """Every scheduler that submits to Slurm."""
    return [_slurm_site(kind, request) for kind, cluster in SITES.items() if cluster]
