"""The examples of docs/examples/launchers on this machine, and the guide that shows them."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest

from slurmbus.home import Home
from slurmbus.local import stop_local

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples" / "launchers"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("SLURMBUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield load("definitions")
    stop_local(Home(tmp_path / "home"))
    sys.modules.pop("tool_launcher", None)


def test_a_launcher_of_ones_own_and_an_interpreter(definitions: ModuleType, tmp_path: Path) -> None:
    defs: dg.Definitions = definitions.defs
    with dg.instance_for_test() as instance:
        result = dg.materialize([definitions.pinned, definitions.words], resources=defs.resources, instance=instance)
        [pinned] = result.asset_materializations_for_node("pinned")
        [words] = result.asset_materializations_for_node("words")
        assert pinned.metadata["cpus"].value == [0]
        source = (EXAMPLES / "words.awk").read_text()
        output = next(Path(str(value.value)) for name, value in words.metadata.items() if name.endswith("count.txt"))
        assert int(output.read_text()) == len(source.split())


def test_the_guide_shows_the_example_as_it_is() -> None:
    example = (EXAMPLES / "tool_launcher.py").read_text()
    assert example[example.index("class ToolLauncher") :] in (DOCS / "guides" / "launchers.md").read_text()
