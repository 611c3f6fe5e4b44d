"""The schedulers that have to keep the contract, and what the tests of Dagster's assets share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from _pytest.mark import ParameterSet

from contract.bus_site import bus_site
from contract.commands_site import CommandsSite
from contract.native_site import NativeSite
from contract.scripted_jobs import DagsterSite
from contract.sites import LocalSite, Site
from slurmbus.home import Home

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


@pytest.fixture(scope="session")
def scripted_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a bus, for agents that follow scripts."""
    with bus_site(tmp_path_factory.mktemp("scripted")) as running:
        yield running.home


@pytest.fixture
def slurm(scripted_home: Home) -> Iterator[DagsterSite]:
    """A site whose agent does what its script says; the test fails if the script did."""
    site = DagsterSite(scripted_home)
    with site.running():
        yield site
    assert site.errors == []


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of the test's own."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance
