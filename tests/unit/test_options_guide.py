"""The guide to options says what the code does: its tables are the code's, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from slurmbus_agent.scheduler.local_options import REFUSED
from slurmbus_protocol.options import OPTIONS, OWNED

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "options.md"


def options_table() -> str:
    rows = ["| name | sbatch | |", "|---|---|---|"]
    for option in OPTIONS:
        name = f"`{option.name}`" if option.native else f"*`{option.name}`*"
        rows.append(f"| {name} | `--{option.flag}` | {option.about} |")
    return "\n".join(rows)


def owned_table() -> str:
    rows = ["| sbatch | instead |", "|---|---|"]
    rows += [f"| `--{flag}` | {reason} |" for flag, reason in OWNED.items()]
    return "\n".join(rows)


@pytest.mark.parametrize(("mark", "table"), [("options", options_table()), ("owned", owned_table())])
def test_the_tables_are_the_codes(mark: str, table: str) -> None:
    found = re.search(rf"<!-- {mark}: begin -->\n(.*)\n<!-- {mark}: end -->", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    assert found[1] == table


def test_the_code_defines_what_it_shows() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(compile(block, str(GUIDE), "exec", dont_inherit=True), names)
    definitions: dg.Definitions = names["defs"]
    assert definitions.resolve_implicit_global_asset_job_def().all_node_defs


def test_what_is_refused_on_this_machine_is_said() -> None:
    text = GUIDE.read_text()
    sentence = text[text.index("are kept. `dependency`") : text.index("are refused, because")]
    assert set(re.findall(r"`(\w+)`", sentence)) == set(REFUSED)
