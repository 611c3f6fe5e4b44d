"""Launches without Slurm: real runner processes and helpers, with a stand-in for Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner_lab import Lab, lab
from slurmbus_agent.launching import launch_fields
from slurmbus_agent.runner.launch_wire import Wire, challenge
from slurmbus_agent.runner.protocol import EXIT_SETUP
from slurmbus_agent.spool import JobDir
from slurmbus_agent.spool_files import EndReport
from slurmbus_protocol.plans import CommandPlan, MpiPlan, RayPlan, TorchrunPlan

LIKE_RAY = str(Path(__file__).parent / "payloads" / "like_ray.py")
LIKE_MPIRUN = """#!/bin/bash
# Knows its words as Open MPI's does, and asks Slurm wherever it believes to be on one of its nodes.
[[ $1 = --version ]] && { echo "mpirun (Open MPI) 5"; exit; }
[[ -z ${SLURM_JOBID-} ]] || { echo "SLURM_TASKS_PER_NODE isn't set"; exit 1; }
for ((rank = 0; rank < $2; rank++)); do RANK=$rank "${@:4}" & done
wait
"""
PATIENCE = 20.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as one:
        yield one


def stage(place: Lab, *argv: str, first: str = "", preamble: str = "", **fields: Any) -> JobDir:
    plan = RayPlan(argv=argv, preamble=preamble, **{"python": LIKE_RAY, "dashboard": False, **fields})
    return place.job(*argv, preamble=preamble, launch=launch_fields(plan), env={"FIRST": first})


def run(place: Lab, job: JobDir) -> int:
    return place.run(job, env={"SLURMBUS_SCHEDULER": "local"})


def end_of(job: JobDir) -> EndReport:
    report = job.report(0)
    assert report is not None
    assert report.end is not None
    return report.end


def descendants(process: subprocess.Popen[bytes]) -> list[tuple[int, list[str]]]:
    """Give the processes below one, with their words."""
    found = []
    waiting = [process.pid]
    while waiting:
        pid = waiting.pop()
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        found.append((pid, words))
        waiting += [int(child) for child in children]
    return found


def wait_for_helper(process: subprocess.Popen[bytes], below: str) -> list[str]:
    """Wait until a launch has a helper that has started a program, and give the helper's words."""
    give_up = time.monotonic() + PATIENCE
    while True:
        every = descendants(process)
        helpers = [words for _, words in every if "--node" in words]
        if helpers and any(below in words for _, words in every):
            return helpers[0]
        assert time.monotonic() < give_up, every
        time.sleep(0.01)


def test_a_commands_plan_stays_as_it_was() -> None:
    assert launch_fields(CommandPlan(argv=("true",))) is None
    fields = launch_fields(RayPlan(argv=("true",), preamble="x", pre_start_commands=("a", "b")))
    assert fields is not None
    assert set(fields) == {"type", *RayPlan.__struct_fields__} - {"argv", "preamble"}
    assert (fields["type"], fields["pre_start_commands"], fields["dashboard"]) == ("ray", ("a", "b"), True)


@pytest.mark.parametrize(("script", "code", "number"), [("exit 7", 7, None), ("kill -SEGV $$", None, signal.SIGSEGV)])
def test_the_launch_ends_as_its_payload(place: Lab, script: str, code: int | None, number: int | None) -> None:
    job = stage(
        place, "bash", "-c", f"echo $RAY_ADDRESS; echo $FROM_PREAMBLE >&2; {script}", preamble="export FROM_PREAMBLE=1"
    )
    assert run(place, job) == (code if code is not None else 128 + (number or 0))
    assert (end_of(job).exit_code, end_of(job).signal, end_of(job).error) == (code, number, None)
    assert ":" in (job.path / "0.stdout").read_text()
    assert (job.path / "0.stderr").read_text().endswith("1\n")


def test_a_payload_that_isnt_there(place: Lab) -> None:
    job = stage(place, "no-such-program")
    assert run(place, job) == 127
    assert (end_of(job).error, end_of(job).error_code) == (
        "the command 'no-such-program' isn't on this site's PATH",
        "launch-failed",
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"first": "fails"}, "Ray can't be started on c1: exit code 1: no memory"),
        ({"first": "hangs", "start_timeout": 0.5}, "Ray wasn't ready within 0.5 s: c1 didn't join"),
        ({"python": sys.executable}, "has no Ray (No module named 'ray')"),
        ({"python": "no-python"}, "the command 'no-python' isn't on this site's PATH"),
        ({"pre_start_commands": ("echo why", "false")}, "pre_start_commands: c1: exit code 1: why"),
        ({"interface": "ib7"}, "interface: c1 has no 'ib7' with an IPv4 address; it has "),
        ({"temp_dir": "/" + "x" * 40}, "is too long for the sockets in it; use at most 25 letters"),
        ({"temp_dir": "/no/such"}, "temp_dir: /no/such/ray-"),
        ({"ray_address": "127.0.0.1:9"}, "ray_address: nothing answers at 127.0.0.1:9 from c1"),
        ({"object_store_memory": 1 << 60}, "which leaves nothing for tasks"),
    ],
)
def test_what_fails_before_the_payload_says_why(place: Lab, fields: dict[str, Any], words: str) -> None:
    job = stage(place, "echo", "never", **fields)
    code = run(place, job)
    end = end_of(job)
    assert words in (end.error or ""), end
    assert (code, end.error_code) == (EXIT_SETUP, "launch-failed")
    assert (job.path / "0.stdout").read_text() == ""
    assert "Traceback" not in (job.path / "0.stderr").read_text()


def test_an_unknown_launcher_is_told(place: Lab) -> None:
    job = place.job("true", launch={"type": "teleport"})
    assert run(place, job) == EXIT_SETUP
    assert end_of(job).error == "this runner knows no launcher 'teleport'; update the agent"


def test_more_gpus_than_slurm_gave(place: Lab) -> None:
    job = stage(place, "true", num_gpus_per_node=2)
    assert place.run(job, env={"SLURMBUS_SCHEDULER": "local", "CUDA_VISIBLE_DEVICES": "0"}) == EXIT_SETUP
    assert "num_gpus_per_node=2, but Slurm gave 1 on c1" in (end_of(job).error or "")


@pytest.mark.parametrize("first", ["port-taken", "impatient", "watch-ends"])
def test_what_can_be_started_again_is(place: Lab, first: str) -> None:
    job = stage(place, "bash", "-c", "echo $RAY_ADDRESS", first=first)
    assert run(place, job) == 0, (job.path / "0.stderr").read_text()
    assert "is ready on c1" in (job.path / "0.stderr").read_text()


def test_commands_before_the_start_hold_for_what_is_started(place: Lab) -> None:
    job = stage(place, "true", first="hangs", pre_start_commands=("export FIRST=fails", "echo said"))
    assert run(place, job) == EXIT_SETUP
    assert end_of(job).error == "Ray can't be started on c1: exit code 1: no memory"
    assert "slurmbus: [c1] said\n" in (job.path / "0.stderr").read_text()


@pytest.mark.parametrize(
    "command",
    [
        "for n in 1 2 3 4; do export LARGE_$n=$(head -c 60000 /dev/zero | tr '\\0' x); done",
        "setsid sleep 1000 >/dev/null 2>&1 &",
    ],
    ids=["a large environment", "something that stays"],
)
def test_what_commands_before_the_start_may_leave(place: Lab, command: str) -> None:
    """More in the environment than a pipe holds, and a program that keeps their pipe open."""
    job = stage(place, "true", start_timeout=10, pre_start_commands=(command, "export FIRST=fails"))
    assert run(place, job) == EXIT_SETUP
    assert end_of(job).error == "Ray can't be started on c1: exit code 1: no memory"


def test_signals_reach_the_payload_and_nothing_is_left(place: Lab) -> None:
    job = stage(place, "bash", "-c", "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done")
    process = place.start(job, env={"SLURMBUS_SCHEDULER": "local"})
    give_up = time.monotonic() + PATIENCE
    while not (job.path / "0.stdout").exists() or "ready" not in (job.path / "0.stdout").read_text():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    below = descendants(process)
    assert len(below) > 4
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE) == 3
    assert (job.path / "0.stdout").read_text() == "ready\ncaught\n"
    assert [pid for pid, _ in below if os.path.exists(f"/proc/{pid}")] == []  # noqa: PTH110 - a process


def test_a_signal_while_it_starts_ends_it(place: Lab) -> None:
    job = stage(place, "echo", "never", first="hangs")
    process = place.start(job, env={"SLURMBUS_SCHEDULER": "local"})
    wait_for_helper(process, "--ray-start")
    below = descendants(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert end_of(job).signal == signal.SIGTERM
    assert [pid for pid, _ in below if os.path.exists(f"/proc/{pid}")] == []  # noqa: PTH110 - a process


def test_a_killed_launch_leaves_nothing(place: Lab) -> None:
    job = stage(place, "sleep", "1000")
    process = place.start(job, env={"SLURMBUS_SCHEDULER": "local"})
    wait_for_helper(process, "1000")
    below = descendants(process)
    [launch] = [pid for pid, words in below if "--launch" in words]
    os.kill(launch, signal.SIGKILL)
    assert process.wait(PATIENCE) == 128 + signal.SIGKILL
    assert [pid for pid, _ in below if os.path.exists(f"/proc/{pid}")] == []  # noqa: PTH110 - a process


@pytest.mark.parametrize("prefix", [False, True])
def test_as_many_ranks_as_tasks_without_slurm(place: Lab, tmp_path: Path, prefix: bool) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(LIKE_MPIRUN.replace("${@:4}", "${@:5}") if prefix else LIKE_MPIRUN)
    mpirun.chmod(0o700)
    argv = ("bash", "-c", "echo rank $RANK of job $SLURM_JOB_ID")
    plan = MpiPlan(argv=argv, mpirun=str(mpirun), prefix=prefix)
    job = place.job(*argv, launch=launch_fields(plan))
    env = {"SLURMBUS_SCHEDULER": "local", "SLURM_JOBID": "7", "SLURM_NTASKS": "4"}
    assert place.run(job, env=env, job_id=7) == 0, (job.path / "0.stdout").read_text()
    lines = sorted((job.path / "0.stdout").read_text().splitlines())
    assert lines == [f"rank {rank} of job 7" for rank in range(4)]
    assert f"4 ranks by {mpirun} (Open MPI) on " in (job.path / "0.stderr").read_text()


def test_torchruns_step_is_not_bent_by_what_was_meant_for_the_job(place: Lab, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(f"#!/bin/bash\nenv >{tmp_path}/env; echo $* >{tmp_path}/words\n")
    (tmp_path / "srun").chmod(0o700)
    plan = TorchrunPlan(argv=("train.py",), torchrun="true")
    job = place.job("train.py", preamble=f"export PATH={tmp_path}:$PATH", launch=launch_fields(plan))
    env = {
        "SLURMD_NODENAME": "localhost",
        "SLURM_JOB_NODELIST": "localhost,c2",
        "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_GPUS_PER_TASK": "1",
        "SLURM_GPU_BIND": "closest",
        "SLURM_TRES_PER_TASK": "cpu=2,gres/gpu=1",
        "SLURM_NTASKS": "4",
        "OF_THE_USER": "stays",
    }
    assert place.run(job, env=env) == 0, (job.path / "0.stderr").read_text()
    told = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert {name for name in env if name not in told} == {
        "SLURM_GPUS_ON_NODE",
        "SLURM_GPUS_PER_TASK",
        "SLURM_GPU_BIND",
        "SLURM_TRES_PER_TASK",
        "SLURM_NTASKS",
    }
    assert "--nodelist=localhost,c2 --gpus-per-node=2 " in (tmp_path / "words").read_text()


def test_strangers_are_turned_away(place: Lab) -> None:
    job = stage(place, "bash", "-c", "until [[ -e go-on ]]; do sleep 0.05; done")
    process = place.start(job, env={"SLURMBUS_SCHEDULER": "local"})
    helper = wait_for_helper(process, "--ray-start")
    with socket.create_connection((helper[helper.index("--node") + 3].split(",")[0], int(helper[-2])), PATIENCE) as one:
        wire = Wire(one)
        assert wire.receive_one()["challenge"]
        wire.send(node="c1", address="", challenge=challenge(), proof="0" * 64)
        assert one.recv(1) == b""  # it was closed, without a proof of its own
    (job.path / "work" / "go-on").touch()
    assert process.wait(PATIENCE) == 0
