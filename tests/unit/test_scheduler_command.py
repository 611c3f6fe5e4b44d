"""Running a command: whatever it does, the call ends in time and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slurmbus_agent.scheduler.base import Unavailable
from slurmbus_agent.scheduler.calls import HungUp
from slurmbus_agent.scheduler.command import Ended, environment, run

ENV = {"PATH": os.environ["PATH"]}


def shell(text: str, *, patience: float = 20.0, **further: object) -> Ended:
    return run(["/bin/sh", "-c", text], env=ENV, patience=patience, **further)  # type: ignore[arg-type]


def test_what_it_says_and_how_it_ends() -> None:
    ended = shell("cat; echo oops >&2; exit 3", stdin=b"hello")
    assert (ended.code, ended.stdout, ended.stderr, ended.trouble) == (3, "hello", "oops\n", "")


def test_a_late_one_is_killed_with_everything_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    ended = shell(f"sleep 1000 & echo $! >{pid}; echo begun; wait", patience=1.0)
    assert ended.code is None
    assert ended.stdout == "begun\n"
    assert "no answer within 1 s" in ended.said
    deadline = time.monotonic() + 10
    while _runs(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_one_that_a_signal_ended() -> None:
    ended = shell("kill -SEGV $$")
    assert ended.code is None
    assert "SIGSEGV" in ended.said


def test_output_without_end() -> None:
    ended = shell("exec yes")
    assert ended.code is None
    assert "more than 32 MiB" in ended.said
    assert len(ended.said) < 2000


def test_output_that_something_in_the_background_holds_open() -> None:
    ended = shell("sleep 30 & echo done", patience=25.0)
    assert (ended.code, ended.stdout) == (0, "done\n")
    assert ended.seconds < 20


def test_one_that_reads_nothing_of_a_long_script() -> None:
    ended = shell("echo no >&2; exit 1", stdin=b"x" * 1_000_000)
    assert (ended.code, ended.stderr) == (1, "no\n")


def test_one_that_reads_slowly() -> None:
    ended = shell("sleep 0.2; wc -c", stdin=b"x" * 1_000_000)
    assert ended.stdout.strip() == "1000000"


def test_bytes_that_are_no_text() -> None:
    ended = shell(r"printf '\377\033[31mred\n' >&2; exit 1")
    assert "red" in ended.said
    assert ended.said.isprintable()


def test_words_end_it_at_once() -> None:
    ended = shell("echo 'sleeping and retrying' >&2; exec sleep 1000", stop_at=(b"other", b"retrying"))
    assert ended.code is None
    assert "retrying" in ended.stderr


def test_one_that_is_not_there() -> None:
    with pytest.raises(Unavailable, match="sbatch can't be started: No such file"):
        run(["/no/such/sbatch"], env=ENV, patience=1.0)


def test_it_ends_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    read, write = os.pipe()
    threading.Timer(0.3, os.close, [write]).start()
    pid = tmp_path / "pid"
    with pytest.raises(HungUp):
        shell(f"echo $$ >{pid}; exec sleep 1000", owner=read)
    os.close(read)
    assert not _runs(int(pid.read_text()))


def test_it_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    text = (
        "from slurmbus_agent.scheduler.command import run\n"
        f"run(['/bin/sh', '-c', 'echo $$ >{pid}; exec sleep 1000'], env={{}}, patience=100)"
    )
    with subprocess.Popen([sys.executable, "-c", text]) as owner:
        deadline = time.monotonic() + 20
        while not (pid.exists() and pid.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        owner.kill()
    while _runs(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_variables_that_change_the_commands_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CLUSTERS", "SBATCH_PARTITION", "SQUEUE_FORMAT", "SACCT_FORMAT", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "odd")
    monkeypatch.setenv("SLURM_CONF", "/site/slurm.conf")
    monkeypatch.setenv("KEPT", "yes")
    found = environment(None)
    assert "odd" not in found.values()
    assert (found["SLURM_CONF"], found["KEPT"], found["LC_ALL"]) == ("/site/slurm.conf", "yes", "C")
    assert environment("/other")["SLURM_CONF"] == "/other"
