"""The schedulers that have to keep the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.sites import LocalSite, Site


@pytest.fixture(params=["local"])
def site(tmp_path: Path) -> Site:
    return LocalSite(tmp_path)
