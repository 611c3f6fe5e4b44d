"""Lines that the code of the agent, the runner and the clients keeps: nothing is unpickled, no shell is in between."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol/slurmbus_protocol", "agent/slurmbus_agent", "orchestrator_plugin/slurmbus")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen"}
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _modules(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module.partition(".")[0]}
    return set()


def _problems(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        found += [f"{path}:{node.lineno} imports {name}" for name in _modules(node) & FORBIDDEN_MODULES]  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            found.append(f"{path}:{node.lineno} calls {name}")
        if any(keyword.arg == "shell" and getattr(keyword.value, "value", None) is True for keyword in node.keywords):
            found.append(f"{path}:{node.lineno} starts a shell")
    return found


def test_nothing_is_unpickled_or_evaluated_and_no_shell_is_started() -> None:
    """Two programs of one file execute their own source, which they carry or are sent; nothing else does."""
    assert SOURCES
    loaders = {
        ROOT / "agent/slurmbus_agent/runner/__main__.py",
        ROOT / "orchestrator_plugin/slurmbus/bootstrap/remote/helper.py",
    }
    problems = [problem for path in SOURCES for problem in _problems(path) if path not in loaders]
    assert problems == []


@pytest.mark.parametrize("source", ["import pickle", "from pickle import loads", "f(shell=True)", "os.system('x')"])
def test_the_look_finds_what_it_looks_for(tmp_path: Path, source: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    assert _problems(path)
