"""The guide to arrays does what it says: its code blocks run as they stand, on this machine."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from dagster_slurmbus import ComputeResource
from slurmbus.home import Home
from slurmbus.local import stop_local

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "arrays.md"
TRAIN = """
import sys
from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    assert pipes.extras["rate"] == float(sys.argv[1])
    print(f"training with {sys.argv[1]}")
    pipes.report_custom_message({"rate": pipes.extras["rate"]})
    pipes.report_asset_materialization(metadata={"loss": 1 / pipes.extras["rate"]})
"""
DAY = """
from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    assert pipes.partition_time_window["start"].startswith(pipes.partition_key)
    pipes.report_asset_materialization(metadata={"day": pipes.partition_key})
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`"),  # beta
]


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("guide")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (folder / "train.py").write_text(TRAIN)
    (folder / "day.py").write_text(DAY)
    (folder / "assets.py").write_text("\n".join(blocks))
    spec = importlib.util.spec_from_file_location("assets_of_the_guide", folder / "assets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURMBUS_HOME", str(folder / "slurmbus"))
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        yield module
        stop_local(Home(folder / "slurmbus"))


def test_parameters_and_partitions(guide: ModuleType, tmp_path: Path) -> None:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        resources = {"compute": ComputeResource()}
        result = dg.materialize([guide.models], instance=instance, resources=resources)
        (models,) = result.asset_materializations_for_node("models")
        assert models.metadata["loss"].value == {"lr0.1": 10.0, "lr0.01": 100.0, "lr0.001": 1000.0}
        tags = {ASSET_PARTITION_RANGE_START_TAG: "2026-01-05", ASSET_PARTITION_RANGE_END_TAG: "2026-01-06"}
        result = dg.materialize([guide.daily], instance=instance, resources=resources, tags=tags)
        days = {one.partition: one.metadata["day"].value for one in result.asset_materializations_for_node("daily")}
        assert days == {"2026-01-05": "2026-01-05", "2026-01-06": "2026-01-06"}
