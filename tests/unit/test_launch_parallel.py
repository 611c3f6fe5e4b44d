"""The parts of launches of parallel programs that can be looked at alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurmbus_agent.runner import launch_spark_conf
from slurmbus_agent.runner.launch_allocation import Allocation
from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_loop import Loop
from slurmbus_agent.runner.launch_mpi import HYDRA, LABELS, OPEN_MPI, ranks_of
from slurmbus_agent.runner.launch_output import Output
from slurmbus_agent.runner.launch_spark_conf import Sizes, defaults, write
from slurmbus_agent.runner.launch_srun import FirstEnd
from slurmbus_agent.runner.launch_torchrun_node import command, processes
from slurmbus_agent.runner.signals import Signals


def first_of(*lines: str) -> FirstEnd:
    first = FirstEnd()
    for line in lines:
        first.see(line)
    return first


def test_the_first_task_that_failed_counts() -> None:
    first = first_of(
        "srun: Terminating StepId=8.0",
        "srun: error: c2: task 2: Exited with exit code 3",
        "srun: error: c1: tasks 0-1: Terminated",
    )
    assert (first.node, first.task, first.status, first.tells) == (" on c2", "2", 3, True)


@pytest.mark.parametrize(
    ("line", "status", "tells"),
    [
        ("srun: error: c[1-2]: tasks 0,2-3: Exited with exit code 1", 1, True),
        ("srun: error: c2: task 2: Segmentation fault (core dumped)", -signal.SIGSEGV, True),
        ("srun: error: c2: task 2: Aborted", -signal.SIGABRT, True),
        ("srun: error: c1: tasks 0-1: Terminated", -signal.SIGTERM, False),
        ("2: Abort(7) on node 2: application called MPI_Abort(MPI_COMM_WORLD, 7) - process 2", 7, True),
        ("application called MPI_Abort(MPI_COMM_WORLD, 256) - process 2", 1, True),
        ("srun: error: c1: task 0: Out Of Memory", None, False),
        ("srun: error: Unable to create step for job 7: Job violates accounting/QOS policy", None, False),
        ("a rank's own words", None, False),
    ],
)
def test_what_srun_says_of_a_task(line: str, status: int | None, tells: bool) -> None:
    first = first_of(line)
    assert (first.status, first.tells) == (status, tells)


@pytest.mark.parametrize(
    ("kind", "line", "shown"),
    [
        ("srun", " 3: some: words", "[rank 3] some: words"),
        ("srun", "11: 4: x", "[rank 11] 4: x"),
        ("srun", "srun: error: c2: task 2: Killed", "srun: error: c2: task 2: Killed"),
        (OPEN_MPI, "[1,3]<stdout>: words", "[rank 3] words"),
        (OPEN_MPI, "[1,3]<stderr>:words", "[rank 3] words"),
        (HYDRA, "[3] words", "[rank 3] words"),
        (HYDRA, "[mpiexec@c1] its own words", "[mpiexec@c1] its own words"),
    ],
)
def test_every_starters_mark_becomes_the_same(kind: str, line: str, shown: str) -> None:
    assert LABELS[kind].sub(lambda found: f"[rank {found[1]}] ", line, count=1) == shown


class Pipe:
    """The loop of a launch, and a file that takes what passes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "out"
        self.to = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        self.loop = Loop(Signals())

    def written(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    kept = {number: signal.getsignal(number) for number in signal.valid_signals() if number not in (9, 19)}
    pipe = Pipe(tmp_path)
    yield pipe
    os.close(pipe.to)
    signal.set_wakeup_fd(-1)
    for number, handler in kept.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def test_what_is_due_is_called_once_in_its_order_however_long_the_turn(pipe: Pipe) -> None:
    called: list[str] = []
    pipe.loop.later(0.02, lambda: called.append("second"))
    pipe.loop.later(0.01, lambda: called.append("first"))
    while len(called) < 2:
        pipe.loop.turn(time.monotonic() + 3600)
    pipe.loop.turn(0.0)
    assert called == ["first", "second"]


def test_output_passes_at_once_and_is_looked_at_by_line(pipe: Pipe) -> None:
    seen: list[str] = []
    output = Output(pipe.loop, pipe.to, see=seen.append)
    os.write(output.writer, b"one\n50 %\r")
    pipe.loop.turn(0.0)
    assert (pipe.written(), seen) == (b"one\n50 %\r", ["one"])
    os.write(output.writer, b"end \xff")
    output.finish()
    assert (pipe.written(), seen) == (b"one\n50 %\rend \xff", ["one", "50 %\rend \udcff"])


def test_rewritten_lines_pass_when_they_are_whole(pipe: Pipe) -> None:
    output = Output(pipe.loop, pipe.to, rewrite=lambda line: f"<{line}>")
    os.write(output.writer, b"one\ntw")
    pipe.loop.turn(0.0)
    assert pipe.written() == b"<one>\n"
    os.write(output.writer, b"o\nthree")
    output.finish()
    assert pipe.written() == b"<one>\n<two>\n<three>\n"


def allocation(**env: str) -> Allocation:
    return Allocation.from_environment({"SLURMD_NODENAME": "c1", "SLURM_JOB_NODELIST": "c[1-2]", **env})


@pytest.mark.parametrize(
    ("options", "ranks"),
    [({}, 6), ({"ranks": 3}, 3), ({"ranks_per_node": 2}, 4), ({"ranks": 3, "ranks_per_node": 2}, 3)],
)
def test_ranks_come_from_the_tasks_unless_they_are_said(options: dict[str, int], ranks: int) -> None:
    job: Any = SimpleNamespace(
        options={"ranks": None, "ranks_per_node": None, **options},
        allocation=allocation(SLURM_JOB_CPUS_PER_NODE="8(x2)", SLURM_TASKS_PER_NODE="3(x2)"),
    )
    assert ranks_of(job) == ranks


@pytest.mark.parametrize(
    ("wanted", "gpus", "count"),
    [("auto", None, 2), ("auto", 0, 2), ("auto", 4, 4), ("gpus", 4, 4), ("cpus", 4, 8), ("tasks", 4, 2), (3, 4, 3)],
)
def test_processes_of_a_node(wanted: int | str, gpus: int | None, count: int) -> None:
    assert processes(wanted, {"cpus": 8, "tasks": 2}, gpus, "c1") == count


def test_processes_for_gpus_that_slurm_didnt_give() -> None:
    with pytest.raises(LaunchFailed, match=r"processes_per_node: Slurm gave no GPU on c1; ask for them"):
        processes("gpus", {"cpus": 8, "tasks": 2}, 0, "c1")


@pytest.mark.parametrize("again", [False, True])
def test_a_node_of_torchrun_knows_its_part(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    wanted = {
        "command": ["python3", "-m", "torch.distributed.run"],
        "first": "here",
        "nodes": {"here": {"cpus": 8, "tasks": 2}},
        "processes": "tasks",
        "interface": None,
        "again": again,
        "join_timeout": 300,
        "arguments": ["--nnodes=1", "train.py"],
    }
    assert command("here", wanted, None) == [
        "python3",
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-conf=is_host=1,join_timeout=300",
        "--nnodes=1",
        "train.py",
    ]
    assert os.environ["OMP_NUM_THREADS"] == "4"
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in os.environ) is again


def members(**memory: int | None) -> list[Any]:
    mib = 1024 * 1024
    return [
        SimpleNamespace(
            name=name,
            node=SimpleNamespace(cpus=4, memory=None if size is None else size * mib),
            physical_memory=64000 * mib,
        )
        for name, size in memory.items()
    ]


NOTHING_SAID = {"driver_memory_mib": 1024, "cores_per_node": None, "executor_memory_mib": None}


def test_sparks_executors_get_what_the_smallest_node_has() -> None:
    sizes = Sizes(members(c1=8000, c2=8000, c3=None), "c1", NOTHING_SAID)
    assert sizes.offered == {"c1": 8000 - 2048, "c2": 8000 - 512, "c3": 64000 - 512}
    assert sizes.executor == int(5952 * 0.6)
    assert sizes.cores == {"c1": 4, "c2": 4, "c3": 4}
    sizes = Sizes(members(c1=8000), "c1", {**NOTHING_SAID, "executor_memory_mib": 9000, "cores_per_node": 2})
    assert (sizes.executor, sizes.offered, sizes.cores) == (9000, {"c1": 9000}, {"c1": 2})


def test_too_little_memory_for_spark_is_said_before_it_starts() -> None:
    with pytest.raises(LaunchFailed, match=r"c1 has 452 MiB left .* ask Slurm for more memory"):
        Sizes(members(c1=2500, c2=2500), "c1", NOTHING_SAID)


def test_sparks_settings_keep_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "spark-defaults.conf").write_text("spark.master local[2]\nspark.eventLog.enabled true\n")
    (own / "log4j2.properties").write_text("rootLogger.level = error\n")
    monkeypatch.setenv("SPARK_CONF_DIR", str(own))
    sizes = Sizes(members(c1=8000), "c1", NOTHING_SAID)
    conf = {"spark.executor.memory": "2g", "spark.app.name": "a\\b\nc"}
    write(str(tmp_path / "conf"), defaults("spark://c1:7077", "10.0.0.1", "secret", sizes, conf))
    assert (tmp_path / "conf/log4j2.properties").read_text() == "rootLogger.level = error\n"
    lines = (tmp_path / "conf" / launch_spark_conf.DEFAULTS).read_text().splitlines()
    assert lines[:2] == ["spark.master local[2]", "spark.eventLog.enabled true"]
    settings = dict(line.split(" ", 1) for line in lines if line)
    assert settings["spark.master"] == "spark://c1:7077"
    assert settings["spark.executor.memory"] == "2g"
    assert settings["spark.app.name"] == r"a\\b\nc"
    assert settings["spark.authenticate.secret"] == "secret"
    assert (tmp_path / "conf").stat().st_mode & 0o777 == 0o700
