"""Launchers make typed plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from dagster_slurmbus import BashLauncher, ComputeLauncher, MpiLauncher, RayLauncher, SparkLauncher, TorchrunLauncher
from slurmbus_protocol.plans import CommandPlan, MpiPlan, RayPlan, SparkPlan, TorchrunPlan


def test_python_payloads_run_with_the_sites_python() -> None:
    assert BashLauncher().plan("train.py", ["--fast"]) == CommandPlan(argv=("python3", "train.py", "--fast"))


def test_shell_payloads_stop_at_the_first_error() -> None:
    assert BashLauncher().plan("run.sh") == CommandPlan(argv=("bash", "-euo", "pipefail", "run.sh"))


def test_interpreter_and_preamble_are_settings() -> None:
    launcher = BashLauncher(python="/opt/python/bin/python3", preamble="module load gcc")
    assert launcher.plan("a.py") == CommandPlan(argv=("/opt/python/bin/python3", "a.py"), preamble="module load gcc")


def test_an_interpreter_starts_every_payload() -> None:
    launcher = BashLauncher(interpreter="Rscript --vanilla -e 'x y'")
    assert launcher.plan("model.R", ["7"]).argv == ("Rscript", "--vanilla", "-e", "x y", "model.R", "7")
    assert launcher.plan("model.py").argv[-1] == "model.py"


@pytest.mark.parametrize(("value", "words"), [("", "it is empty"), ("'R", "can't be taken apart into words")])
def test_an_interpreter_must_be_words(value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BashLauncher(interpreter=value)


def test_other_payloads_are_programs_of_their_own() -> None:
    assert BashLauncher().plan("solver", ["-n", "3"]) == CommandPlan(argv=("./solver", "-n", "3"))
    assert BashLauncher().plan("bin/solver").argv == ("bin/solver",)
    assert BashLauncher().plan("/opt/solver").argv == ("/opt/solver",)


def test_what_cant_be_started_is_refused_in_plain_words(tmp_path: Path) -> None:
    launcher = BashLauncher()
    payload = tmp_path / "model.R"
    payload.write_text("x <- 1\n")
    with pytest.raises(dg.Failure, match=r"payload_path: 'model.R' is no .py or .sh file.*BashLauncher\(interpreter"):
        launcher.check(payload)
    payload.write_text("#!/usr/bin/env Rscript\n")
    with pytest.raises(dg.Failure, match=r"'model\.R' isn't executable: run 'chmod"):
        launcher.check(payload)
    payload.chmod(0o700)
    launcher.check(payload)
    payload.write_text("x <- 1\n")
    BashLauncher(interpreter="Rscript").check(payload)


def test_a_launcher_of_ones_own_is_one_class() -> None:
    class RLauncher(ComputeLauncher):
        vanilla: bool = True

        def plan(self, payload: str, args: Sequence[str] = ()) -> CommandPlan:
            return CommandPlan(argv=("Rscript", *(["--vanilla"] if self.vanilla else []), payload, *args))

    assert RLauncher().plan("model.R").argv == ("Rscript", "--vanilla", "model.R")
    with pytest.raises(NotImplementedError, match="ComputeLauncher has no plan"):
        ComputeLauncher().plan("x.py")


def test_ray_plans_say_only_what_was_set() -> None:
    assert RayLauncher().plan("a.py", ["1"]) == RayPlan(argv=("python3", "a.py", "1"))
    launcher = RayLauncher(
        python="/env/bin/python",
        preamble="module load cuda",
        num_gpus_per_node=2,
        head_cpus=0,
        object_store_memory_gb=1.5,
        resources_per_node={"fast_disk": 1},
        interface="ib0",
        dashboard=False,
        start_timeout=30,
        pre_start_commands=["ulimit -n 4096", "export A=1"],
    )
    assert launcher.plan("a.py") == RayPlan(
        argv=("/env/bin/python", "a.py"),
        preamble="module load cuda",
        python="/env/bin/python",
        num_gpus_per_node=2,
        head_cpus=0,
        object_store_memory=1_500_000_000,
        resources_per_node={"fast_disk": 1.0},
        interface="ib0",
        dashboard=False,
        start_timeout=30.0,
        pre_start_commands=("ulimit -n 4096", "export A=1"),
    )


@pytest.mark.parametrize("address", ["head", "head:", "head:x"])
def test_a_ray_address_has_a_port(address: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        RayLauncher(ray_address=address)
    assert RayLauncher(ray_address="head:6379").plan("a.py") == RayPlan(
        argv=("python3", "a.py"), ray_address="head:6379"
    )


def test_mpi_plans() -> None:
    assert MpiLauncher().plan("solver", ["in.nml"]) == MpiPlan(argv=("./solver", "in.nml"))
    assert MpiLauncher().plan("a.py") == MpiPlan(argv=("python3", "a.py"), mpi4py=True)
    assert MpiLauncher(mpi4py=False).plan("a.py") == MpiPlan(argv=("python3", "a.py"))
    launcher = MpiLauncher(
        how="mpirun", mpirun="mpiexec", mpi="pmix", ranks=8, ranks_per_node=4, prefix=True, arguments=["-v"]
    )
    assert launcher.plan("solver") == MpiPlan(
        argv=("./solver",),
        how="mpirun",
        mpirun="mpiexec",
        mpi="pmix",
        ranks=8,
        ranks_per_node=4,
        prefix=True,
        arguments=("-v",),
    )


def test_torchrun_plans() -> None:
    assert TorchrunLauncher().plan("train.py", ["-x"]) == TorchrunPlan(argv=("train.py", "-x"))
    assert TorchrunLauncher().plan("run.sh").argv == ("bash", "-euo", "pipefail", "run.sh")
    launcher = TorchrunLauncher(python="/env/bin/python", processes_per_node=4, min_nodes=1, max_restarts=3)
    assert launcher.plan("train.py") == TorchrunPlan(
        argv=("train.py",), python="/env/bin/python", processes_per_node=4, min_nodes=1, max_restarts=3
    )
    assert TorchrunLauncher(processes_per_node="gpus").plan("train.py") == TorchrunPlan(
        argv=("train.py",), processes_per_node="gpus"
    )


@pytest.mark.parametrize("value", [0, -1, "gpu", ""])
def test_processes_of_a_node_are_a_number_or_a_word(value: int | str) -> None:
    with pytest.raises(ValueError, match="is neither a number of processes nor one of auto, gpus, cpus, tasks"):
        TorchrunLauncher(processes_per_node=value)


def test_spark_plans() -> None:
    assert SparkLauncher(driver_memory_gb=1.073741824).plan("a.py") == SparkPlan(argv=("python3", "a.py"))
    launcher = SparkLauncher(executor_memory_gb=4, conf={"spark.sql.shuffle.partitions": "64"}, temp_dir="/scratch")
    plan = launcher.plan("a.py")
    assert isinstance(plan, SparkPlan)
    assert (plan.executor_memory_mib, plan.driver_memory_mib) == (3814, 953)
    assert (plan.conf, plan.temp_dir) == ({"spark.sql.shuffle.partitions": "64"}, "/scratch")
