"""What a job uses on its node: cgroups of both versions, and real processes."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slurmbus_agent.runner import facts, live
from slurmbus_agent.runner.facts import Facts
from slurmbus_agent.runner.live import Live, children_cpu, own_cpu
from slurmbus_agent.runner.meter import Meter

KEY = "01JD0000000000000000000000"
MIB = 1024**2
ENV = {"SLURM_JOB_ID": "5", "SLURM_CPUS_ON_NODE": "4", "SLURMD_NODENAME": "c1"}


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def meter(root: str = "", **env: str) -> Meter:
    return Meter(KEY, 0, ENV | env, children_cpu(), root)


@contextmanager
def without_the_runners(seconds: float) -> Iterator[list[float]]:
    """Give what is left of a cgroup's CPU time without this process's, before and after something."""
    bounds = [seconds - own_cpu() - children_cpu()]
    yield bounds
    bounds.append(seconds - own_cpu() - children_cpu())


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    job = "sys/fs/cgroup/{}/slurm/uid_1000/job_5"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "9:memory:/slurm/uid_1000/job_5/step_batch/task_0\n"
            "4:cpuacct,cpu:/slurm/uid_1000/job_5/step_batch\n0::/\n",
            "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
            f"{job.format('memory')}/memory.stat": "rss 5\ntotal_rss 3000\ntotal_shmem 500\ntotal_cache 1400\n",
            f"{job.format('memory')}/memory.limit_in_bytes": "8000\n",
            f"{job.format('memory')}/memory.max_usage_in_bytes": "7900\n",
            f"{job.format('cpu')}/cpuacct.usage": "9000000000000\n",
        },
    )
    measuring = meter(root)
    with without_the_runners(9000.0) as cpu:
        found = measuring.read(10.0)
    assert cpu[0] >= found["cpu_seconds"] >= cpu[1]
    assert (found["rss"], found["memory_limit"]) == (3500, 8000)
    assert (found["cpus"], found["node"], found["at"]) == (4, "c1", 10.0)
    # At the end most of the files are gone from memory; the kernel's peak was with the 900 bytes that were seen.
    (tmp_path / job.format("memory") / "memory.stat").write_text("total_rss 100\ntotal_cache 200\n")
    last = measuring.read_last(11.0)
    assert (last["rss"], last["peak_rss"], last["processes"]) == (100, 7000, 0)


def test_the_cgroup_of_version_2(tmp_path: Path) -> None:
    job = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_5"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_5/step_batch/user/task_0\n",
            "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
            f"{job}/memory.stat": "anon 3000\nfile 100000\nshmem 700\n",
            f"{job}/memory.max": "max\n",
            f"{job}/memory.peak": "108000\n",
            f"{job}/cpu.stat": "usage_usec 9000000000\nuser_usec 1000000\n",
        },
    )
    measuring = meter(root, SLURM_MEM_PER_CPU="100")
    with without_the_runners(9000.0) as cpu:
        found = measuring.read_last(10.0)
    assert cpu[0] >= found["cpu_seconds"] >= cpu[1]
    assert (found["rss"], found["peak_rss"], found["memory_limit"]) == (3700, 8700, 400 * MIB)
    (tmp_path / job / "memory.peak").unlink()  # a kernel before 5.19
    assert measuring.read_last(11.0)["peak_rss"] == 0


def test_a_cgroup_that_is_mounted_from_further_down(tmp_path: Path) -> None:
    """As in a container whose part of the hierarchy is all that it sees."""
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc/system.slice/job_5/step_batch\n",
            "proc/self/mountinfo": "30 25 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
            "sys/fs/cgroup/system.slice/job_5/memory.max": "12345\n",
        },
    )
    assert meter(root).read(1.0)["memory_limit"] == 12345


@pytest.mark.parametrize("path", ["/user.slice/user-1000.slice", "/slurm/uid_1000/job_55/step_batch"])
def test_no_cgroup_of_this_job(tmp_path: Path, path: str) -> None:
    files = {
        "proc/self/cgroup": f"0::{path}\n",
        "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        f"sys/fs/cgroup{path}/memory.max": "1\n",
    }
    assert meter(tree(tmp_path, files), SLURM_MEM_PER_NODE="7").read(1.0)["memory_limit"] == 7 * MIB


BUSY = """
import os, sys, time
held = bytearray(60 * 1024**2)
end = time.process_time() + 0.3
while time.process_time() < end: pass
if os.fork() == 0:
    while time.process_time() < end + 0.2: pass
    os._exit(0)
os.wait()
with open("/dev/null", "wb") as file: file.write(held)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(code: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, **options) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline() == b"ready\n"
        yield running
        running.stdin.close()


def test_real_processes_below_the_runner() -> None:
    measuring = meter()
    before = measuring.read(1.0)
    with process(BUSY):
        found = measuring.read(2.0)
        again = measuring.read(3.0)
    assert found["processes"] == before["processes"] + 1
    assert found["rss"] - before["rss"] >= 60 * MIB
    # What its child used counts as well, since it waited for it.
    assert 0.45 <= found["cpu_seconds"] - before["cpu_seconds"] < 5
    assert found["written_bytes"] - before["written_bytes"] >= 60 * MIB
    assert again["cpu_seconds"] >= found["cpu_seconds"]
    after = measuring.read(4.0)
    assert after["processes"] == before["processes"]
    assert after["cpu_seconds"] >= found["cpu_seconds"]


def test_a_process_elsewhere_is_known_by_the_jobs_key() -> None:
    """Like the task of an srun: slurmstepd is its parent, and it has the environment of the batch script."""
    script = "import sys; print('ready', flush=True); sys.stdin.read()"
    ours = {"SLURMBUS_JOB_KEY": KEY, "SLURMBUS_TASK": "0"}
    with process(BUSY, env={**os.environ, **ours}), process(script, env={**os.environ, **ours, "SLURMBUS_TASK": "1"}):
        measuring = meter()
        measuring._pid = 1 << 30  # as if the runner were somebody else
        found = measuring.read(1.0)
        assert found["processes"] == 1
        assert found["cpu_seconds"] >= 0.45
        assert found["steps"]
    # It has ended, and nobody of ours waited for it: what it used isn't forgotten.
    assert measuring.read(2.0)["cpu_seconds"] >= found["cpu_seconds"]


def test_what_ended_together_with_its_parent_isnt_forgotten() -> None:
    """Like a task of an srun that is a shell with a program in it, both gone by the next look."""
    shell = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"]
    environment = {**os.environ, "SLURMBUS_JOB_KEY": KEY, "SLURMBUS_TASK": "0"}
    with subprocess.Popen(shell, stdin=-1, stdout=-1, env=environment) as outer:
        assert outer.stdout is not None
        assert outer.stdin is not None
        assert outer.stdout.readline() == b"ready\n"
        measuring = meter()
        measuring._pid = 1 << 30
        found = measuring.read(1.0)
        assert found["processes"] == 2
        outer.stdin.close()
    for reading in (measuring.read_last(2.0), measuring.read_last(3.0)):
        assert reading["cpu_seconds"] >= found["cpu_seconds"] >= 0.45


def test_an_srun_below_the_runner_tells_of_steps(tmp_path: Path) -> None:
    """Also of tasks that don't have the job's environment (srun --export=NONE)."""
    (tmp_path / "srun").symlink_to(shutil.which("cat") or "")
    measuring = meter()
    assert not measuring.read(1.0)["steps"]
    with subprocess.Popen([tmp_path / "srun"], stdin=-1) as running:
        assert measuring.read(2.0)["steps"]
        assert running.stdin is not None
        running.stdin.close()
    assert measuring.read_last(3.0)["steps"]


class Scripted:
    """A meter that says what it is told to."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"cpus": 2, "cpu_seconds": 0.0, "rss": 100 * MIB, "processes": 3}
        self.last: dict[str, Any] = {}
        self.fails = False

    def read(self, at: float) -> dict[str, Any]:
        if self.fails:
            raise OSError("no /proc")
        return dict(self.found, at=at)

    def read_last(self, at: float) -> dict[str, Any]:
        return self.read(at) | {"rss": 0, "processes": 0, "peak_rss": 0} | self.last


def lived(seconds: int, change: Any = None) -> tuple[Live, list[tuple[int, dict[str, Any]]]]:
    """Live for a while, second by second; what was told and when."""
    measured, scripted = Live(KEY, 0, {}, 0.0), Scripted()
    measured._meter = scripted  # type: ignore[assignment]
    told = []
    for second in range(seconds + 1):
        if change is not None:
            change(second, scripted)
        if measured.work(float(second)):
            assert measured.told is not None
            told.append((second, measured.told))
    return measured, told


def test_a_quiet_job_is_told_ever_more_rarely() -> None:
    measured, told = lived(86400)
    seconds = [second for second, _ in told]
    pauses = [after - before for before, after in itertools.pairwise(seconds)]
    assert seconds[0] == 12
    assert pauses[0] == 120
    assert pauses == sorted(pauses)
    assert pauses[-1] >= live.TELL_SLOWEST * live.UNCHANGED
    assert len(told) < 40
    assert measured.latest is not None
    assert measured.latest["at"]


def test_a_restless_job_is_bounded_as_well() -> None:
    def change(second: int, scripted: Scripted) -> None:
        scripted.found["rss"] = (second % 7) * 1000 * MIB

    measured, told = lived(86400, change)
    pauses = [after[0] - before[0] for before, after in itertools.pairwise(told)]
    assert min(pauses) >= live.TELL_AGAIN
    assert 60 < len(told) <= 110
    assert measured.latest is not None
    assert measured.latest["peak_rss"] == 6000 * MIB


def test_percent_of_the_allocated_cpus_since_the_last_look() -> None:
    def change(second: int, scripted: Scripted) -> None:
        scripted.found["cpu_seconds"] = 1.5 * second

    measured, _ = lived(42, change)
    assert measured.latest is not None
    assert measured.latest["cpu_percent"] == 75.0


def looks(until: float) -> list[float]:
    measured, scripted = Live(KEY, 0, {}, 0.0), Scripted()
    measured._meter = scripted  # type: ignore[assignment]
    seen = []
    while measured.due <= until:
        seen.append(measured.due)
        measured.work(measured.due)
    return seen


def test_looks_become_rarer() -> None:
    assert looks(45.0) == [0.75, 2.25, 5.25, 11.25, 21.25, 31.25, 41.25]


def ended(last: dict[str, Any], seconds: int = 3) -> dict[str, Any]:
    """Live for a while, until the payload ends with these last readings; give what is known then."""

    def change(_: int, scripted: Scripted) -> None:
        scripted.found["cpu_seconds"] = 1.0
        scripted.last = last

    measured, _ = lived(seconds, change)
    measured.finish(seconds + 0.5)
    assert not measured.work(1e9)
    assert measured.latest is not None
    return measured.latest


def test_the_end_counts_what_was_used_since_the_last_look() -> None:
    latest = ended({"cpu_seconds": 7.0, "peak_rss": 150 * MIB})
    assert (latest["cpu_seconds"], latest["peak_rss"]) == (7.0, 150 * MIB)
    assert (latest["rss"], latest["processes"]) == (100 * MIB, 3)  # as it was while there was something


def test_the_end_takes_nothing_back() -> None:
    latest = ended({"cpu_seconds": 0.5})
    assert (latest["cpu_seconds"], latest["peak_rss"]) == (1.0, 100 * MIB)


def test_a_payload_that_nobody_looked_at_has_its_cgroups_figures() -> None:
    latest = ended({"cpu_seconds": 7.0, "peak_rss": 150 * MIB}, seconds=0)
    assert (latest["cpu_seconds"], latest["peak_rss"], latest["processes"]) == (7.0, 150 * MIB, 0)


def test_a_short_payload_without_a_cgroup_costs_no_meter() -> None:
    measured = Live(KEY, 0, {"SLURM_JOB_ID": "5"}, 0.0)
    measured.finish(0.5)
    assert (measured.latest, measured._meter) == (None, None)


def test_where_nothing_can_be_measured_nothing_is_told() -> None:
    measured, told = lived(200, lambda _, scripted: setattr(scripted, "fails", True))
    assert (measured.latest, told) == (None, [])


def test_facts_are_read_when_the_file_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "0.facts"
    found = Facts(str(path))
    assert not found.look()

    def write(text: str) -> bool:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(path)
        return found.look()

    assert write('{"ray_dashboard": "http://c1:8265"}')
    assert found.known == {"ray_dashboard": "http://c1:8265"}
    assert not found.look()
    assert not write('{"ray_dashboard": "http://c1:8265"}')
    assert not write("{half a")
    assert not write('["no object"]') or found.known == {}
    assert write('{"a": "1", "b": 2, "c": "' + "x" * 1001 + '", "": "y"}')
    assert found.known == {"a": "1"}


def test_facts_are_bounded() -> None:
    assert len(facts.kept({str(number): "x" for number in range(100)})) == facts.MOST
    assert facts.kept({"x" * 65: "y"}) == {}
    assert facts.kept("text") == {}


def test_a_measurement_is_quick() -> None:
    """It happens every 10 s beside the payload: its CPU time counts, not the wall's."""
    measuring = meter()
    measuring.read(1.0)
    begun = time.process_time()
    for _ in range(20):
        measuring.read(1.0)
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    assert (time.process_time() - begun) / 20 < 0.001 * max(processes, 100)
