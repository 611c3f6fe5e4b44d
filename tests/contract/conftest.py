"""The schedulers that have to keep the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.native_site import NativeSite
from contract.sites import LocalSite, Site


@pytest.fixture(params=["local", pytest.param("native", marks=pytest.mark.cluster)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "local":
        return LocalSite(tmp_path)
    return NativeSite(request.getfixturevalue("cluster"))
