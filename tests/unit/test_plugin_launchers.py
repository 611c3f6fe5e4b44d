"""Launchers make typed plans."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg
import pytest

from dagster_slurmbus import BashLauncher, ComputeLauncher
from slurmbus_protocol.messages import CommandPlan


def test_python_payloads_run_with_the_sites_python() -> None:
    assert BashLauncher().plan("train.py", ["--fast"]) == CommandPlan(argv=("python3", "train.py", "--fast"))


def test_shell_payloads_stop_at_the_first_error() -> None:
    assert BashLauncher().plan("run.sh") == CommandPlan(argv=("bash", "-euo", "pipefail", "run.sh"))


def test_interpreter_and_preamble_are_settings() -> None:
    launcher = BashLauncher(python="/opt/python/bin/python3", preamble="module load gcc")
    assert launcher.plan("a.py") == CommandPlan(argv=("/opt/python/bin/python3", "a.py"), preamble="module load gcc")


@pytest.mark.parametrize("payload", ["model.R", "Makefile"])
def test_other_payloads_are_refused_in_plain_words(payload: str) -> None:
    with pytest.raises(dg.Failure, match=f"payload_path: BashLauncher starts .py and .sh files, and '{payload}'"):
        BashLauncher().plan(payload)


def test_a_launcher_of_ones_own_is_one_class() -> None:
    class RLauncher(ComputeLauncher):
        vanilla: bool = True

        def plan(self, payload: str, args: Sequence[str] = ()) -> CommandPlan:
            return CommandPlan(argv=("Rscript", *(["--vanilla"] if self.vanilla else []), payload, *args))

    assert RLauncher().plan("model.R").argv == ("Rscript", "--vanilla", "model.R")
    with pytest.raises(NotImplementedError, match="ComputeLauncher has no plan"):
        ComputeLauncher().plan("x.py")
