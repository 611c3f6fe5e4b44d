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


@pytest.fixture(params=params())
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """One of the schedulers."""
    cluster = SITES[request.param]
    if not cluster:
        return LocalSite(tmp_path)
    kind = NativeSite if request.param == "native" else CommandsSite
    return kind(request.getfixturevalue(cluster))
