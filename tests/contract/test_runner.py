"""What the runner does with a payload: real processes, started by the real batch script, no link."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner_lab import Lab, lab
from slurmbus_agent.runner.protocol import EXIT_SETUP
from slurmbus_agent.spool import JobDir, batch_script


def pythons() -> list[str]:
    """Give one interpreter of each version that the runner must work with and that this machine has."""
    found = {f"3.{sys.version_info.minor}": sys.executable}
    for minor in range(9, 16):
        managed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))
        system = shutil.which(f"python3.{minor}", path="/usr/local/bin:/usr/bin:/bin")
        if managed or system:
            found.setdefault(f"3.{minor}", str(managed[-1]) if managed else str(system))
    return [found[version] for version in sorted(found, key=lambda version: int(version[2:]))]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as one:
        yield one


def wait_for(job: JobDir, name: str, text: str = "") -> None:
    """Wait until a file of the job holds a text."""
    give_up = time.monotonic() + 20
    path = job.path / name
    while not path.exists() or text not in path.read_text(errors="replace"):
        assert time.monotonic() < give_up, f"no {text!r} in {name}"
        time.sleep(0.005)


@pytest.mark.parametrize("python", pythons())
def test_a_payload_runs_on_every_python(place: Lab, python: str) -> None:
    job = place.job("bash", "-c", "echo out; echo err >&2; exit 3")
    before = time.time()
    assert place.run(job, python=python, job_id=77) == 3
    assert (job.path / "0.stdout").read_text() == "out\n"
    assert (job.path / "0.stderr").read_text() == "err\n"
    report = job.report(0)
    assert report is not None
    assert report.end is not None
    assert (report.start, report.job_id, report.node) == (0, 77, "c1")
    assert (report.end.exit_code, report.end.signal, report.end.error) == (3, None, None)
    assert report.end.sizes == report.sizes == {"stdout": 4, "stderr": 4, "messages": 0}
    assert report.started_at is not None
    assert before <= report.started_at <= report.end.ended_at <= time.time()
    [claim] = job.claims()
    assert (claim.job_id, claim.node, claim.nonce) == (77, "c1", report.nonce)
    assert before - 1 < claim.claimed_at <= report.started_at
    assert not job.batch_output.read_text()


def test_at_most_eight_files_a_start_and_all_private(place: Lab) -> None:
    job = place.job("true", pipes=True)
    job.write_context(b"{}")
    place.run(job)
    files = sorted(path.name for path in job.path.iterdir() if path.is_file() and not path.name.startswith("script"))
    assert files == ["0.messages", "0.report", "0.stderr", "0.stdout", "batch.out", "context", "plan.json", "request"]
    assert all(stat.S_IMODE((job.path / name).stat().st_mode) == 0o600 for name in files if name != "batch.out")


def test_killed_by_a_signal(place: Lab) -> None:
    job = place.job("bash", "-c", "kill -SEGV $$")
    assert place.run(job) == 128 + signal.SIGSEGV
    report = job.report(0)
    assert report is not None
    assert report.end is not None
    assert (report.end.exit_code, report.end.signal) == (None, signal.SIGSEGV)


def test_usage(place: Lab) -> None:
    job = place.job(sys.executable, "-c", "x = bytearray(80_000_000); t = 0\nfor i in range(3_000_000): t += i")
    assert place.run(job) == 0
    report = job.report(0)
    assert report is not None
    assert report.end is not None
    usage = report.end.usage
    assert usage is not None
    assert 80_000_000 < usage.max_rss < 200_000_000
    assert usage.cpu_seconds > 0.02
    assert usage.elapsed > 0.02


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["no-such-command"], 127, "'no-such-command' isn't on this site's PATH"),
        (["./missing.sh"], 127, "'./missing.sh' isn't there"),
        (["plain.txt"], 127, "write './plain.txt'"),
        (["./plain.txt"], 126, "'./plain.txt' isn't executable"),
        (["./no-interpreter"], 127, "the interpreter that the first line of './no-interpreter' names"),
        (["./no-program"], 126, "its first line must name its interpreter"),
        (["true", "x" * 200_000], 126, "longer than the system allows"),
        (["true", "a\0b"], 126, "zero byte"),
        (["/"], 126, "'/' isn't executable"),
    ],
)
def test_what_cant_be_started_says_why(place: Lab, argv: list[str], code: int, words: str) -> None:
    job = place.job(*argv)
    work = job.path / "work"
    (work / "plain.txt").write_text("x")
    (work / "no-interpreter").write_text("#!/no/such/interpreter\n")
    (work / "no-program").write_text("\x01\x02")
    for name in ("no-interpreter", "no-program"):
        (work / name).chmod(0o700)
    assert place.run(job) == code
    report = job.report(0)
    assert report is not None
    assert report.end is not None
    assert words in (report.end.error or "")
    assert (report.end.exit_code, report.end.error_code, report.started_at) == (code, "not-started", None)
    output = job.batch_output.read_text()
    assert words in output
    assert "Traceback" not in output


def test_a_missing_working_directory_says_so(place: Lab) -> None:
    job = place.job("true", cwd="/no/such/folder")
    assert place.run(job) == 126
    report = job.report(0)
    assert report is not None
    assert report.end is not None
    assert report.end.error == "the working directory /no/such/folder can't be entered: No such file or directory"


def test_python_is_python3_where_there_is_no_python(place: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python3", "cat"):
        (folder / name).symlink_to(sys.executable if name == "python3" else "/bin/cat")
    job = place.job("python", "-c", "print('here')", env={"PATH": str(folder)})
    assert place.run(job) == 0
    assert (job.path / "0.stdout").read_text() == "here\n"


def test_environment_working_directory_and_input(place: Lab) -> None:
    script = 'pwd; cat; echo "$FROM_PROFILE,$BOTH,$SLURM_JOB_ID,$SLURMBUS_START,$SLURMBUS_TASK,$MULTI"'
    job = place.job("bash", "-c", script, env={"BOTH": "plan", "MULTI": "a b\n$(c)'\"é"})
    (place.home / ".bash_profile").write_text("export FROM_PROFILE=yes BOTH=profile\n")
    assert place.run(job, job_id=12) == 0
    assert (job.path / "0.stdout").read_text() == f"{job.path}/work\nyes,plan,12,0,0,a b\n$(c)'\"é\n"


def test_arguments_are_passed_as_they_are(place: Lab) -> None:
    words = ["a b", "$HOME", "`id`", "'", '"', "é\n", "", "*", "\\"]
    for preamble in ("", "true"):
        job = place.job("printf", "<%s>", *words, preamble=preamble)
        assert place.run(job) == 0
        assert (job.path / "0.stdout").read_text() == "".join(f"<{word}>" for word in words)


class TestPreamble:
    def test_it_runs_first_and_sets_the_environment(self, place: Lab) -> None:
        preamble = "module() { export LOADED=$2; }\nmodule load gcc  # a comment"
        job = place.job("bash", "-c", 'echo "$LOADED $1"', "x", "arg", preamble=preamble)
        assert place.run(job) == 0
        assert (job.path / "0.stdout").read_text() == "gcc arg\n"

    @pytest.mark.parametrize(
        ("preamble", "code"),
        [("false", 1), ("exit 4", 4), ("echo $UNSET", 1), ("false | true", 1), ("echo 'half", None), ("if", None)],
    )
    def test_its_failure_keeps_the_payload_from_starting(self, place: Lab, preamble: str, code: int | None) -> None:
        job = place.job("echo", "ran", preamble=preamble)
        found = place.run(job)
        assert found == code if code else found
        assert (job.path / "0.stdout").read_text() == ""

    def test_a_command_that_isnt_there(self, place: Lab) -> None:
        job = place.job("no-such-command", preamble="true")
        assert place.run(job) == 127
        assert "no-such-command" in (job.path / "0.stderr").read_text()

    def test_the_payload_is_no_child_of_bash(self, place: Lab) -> None:
        job = place.job("bash", "-c", "cut -d' ' -f4 /proc/$$/stat; kill -9 $$", preamble="true")
        assert place.run(job) == 128 + 9


class TestPythonPath:
    SHOW = "import os; print(os.environ.get('PYTHONPATH'))"

    @pytest.mark.parametrize(
        ("preamble", "env", "expected"),
        [
            ("", {}, "/pipes"),
            ("", {"PYTHONPATH": "/own"}, "/own:/pipes"),
            ("true", {}, "/pipes"),
            ("export PYTHONPATH=/mine:${PYTHONPATH-}", {"PYTHONPATH": "/own"}, "/mine:/own:/pipes"),
        ],
    )
    def test_the_module_comes_last(self, place: Lab, preamble: str, env: dict[str, str], expected: str) -> None:
        job = place.job(sys.executable, "-c", self.SHOW, preamble=preamble, env=env, pipes_path="/pipes")
        assert place.run(job) == 0
        assert (job.path / "0.stdout").read_text() == expected + "\n"


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    def test_they_are_for_the_payload(self, place: Lab, number: signal.Signals) -> None:
        name = number.name.removeprefix("SIG")
        script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.01; done"
        job = place.job("bash", "-c", script)
        process = place.start(job)
        wait_for(job, "0.stdout", "ready")
        process.send_signal(number)
        assert process.wait(20) == 5
        assert (job.path / "0.stdout").read_text() == f"ready\ngot {name}\n"
        report = job.report(0)
        assert report is not None
        assert report.end is not None
        assert report.end.exit_code == 5

    def test_the_whole_group_gets_them(self, place: Lab) -> None:
        job = place.job("bash", "-c", "sleep 100 & echo ready; wait; sleep 100")
        process = place.start(job)
        wait_for(job, "0.stdout", "ready")
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM

    def test_one_that_comes_before_the_payload_isnt_lost(self, place: Lab) -> None:
        job = place.job("sleep", "100")
        process = place.start(job)
        wait_for(job, "0.messages")
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM

    def test_the_payload_starts_with_none_ignored(self, place: Lab) -> None:
        job = place.job("grep", "-E", "SigIgn|SigBlk", "/proc/self/status")
        assert place.run(job) == 0
        blocked, ignored = (int(word, 16) for word in (job.path / "0.stdout").read_text().split()[1::2])
        threading = 1 << 31 | 1 << 32  # 32 and 33 belong to the C library, which lets nobody set them. Source: nptl(7)
        assert (blocked & ~threading, ignored & ~threading) == (0, 0)

    def test_a_killed_runner_takes_the_payload_along(self, place: Lab) -> None:
        job = place.job("bash", "-c", "echo $$; exec sleep 100")
        process = place.start(job)
        wait_for(job, "0.stdout", "\n")
        pid = int((job.path / "0.stdout").read_text())
        process.kill()
        process.wait()
        give_up = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists():
            state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False).stdout
            if state.startswith(b"Z"):
                break
            assert time.monotonic() < give_up
            time.sleep(0.01)


class TestLeftovers:
    @pytest.mark.parametrize(
        "script",
        [
            "sleep 100 & echo $!",
            "set -m; sleep 100 & echo $!",
            "setsid bash -c 'echo $$; exec sleep 100' & sleep 0.1",
            "(setsid bash -c 'sleep 100 & echo $!; exit' &) ; sleep 0.1",
        ],
    )
    def test_they_are_killed(self, place: Lab, script: str) -> None:
        job = place.job("bash", "-c", script)
        assert place.run(job) == 0
        pid = int((job.path / "0.stdout").read_text().split()[-1])
        assert not Path(f"/proc/{pid}").exists()

    def test_orphans_dont_end_the_job_and_are_buried(self, place: Lab) -> None:
        script = "for i in $(seq 20); do (sleep 0.0$((i % 3)) &) ; done; sleep 0.2; ps -o stat= --ppid $PPID"
        job = place.job("bash", "-c", script)
        assert place.run(job) == 0
        assert "Z" not in (job.path / "0.stdout").read_text()


class TestBatchScript:
    @pytest.mark.parametrize(
        "profile", ["echo noise; echo more >&2", "false", "set -euo pipefail", "return 3", "cd /; umask 000; exec 2>&1"]
    )
    def test_a_strange_profile_doesnt_matter(self, place: Lab, profile: str) -> None:
        (place.home / ".bash_profile").write_text(profile + "\n")
        job = place.job("echo", "ran")
        assert place.run(job) == 0
        assert (job.path / "0.stdout").read_text() == "ran\n"
        assert stat.S_IMODE((job.path / "0.stdout").stat().st_mode) == 0o600

    def test_functions_of_the_profile_arent_taken_for_python(self, place: Lab) -> None:
        (place.home / ".bash_profile").write_text("python3() { echo fooled; }\nexec_() { :; }\n")
        job = place.job("echo", "ran")
        assert place.run(job, python="python3") == 0

    def test_the_next_python_is_tried(self, place: Lab, tmp_path: Path) -> None:
        broken = tmp_path / "broken python"
        broken.write_text("#!/no/such/thing\n")
        broken.chmod(0o700)
        for python in (str(broken), "no-such-python"):
            assert place.run(place.job("true"), python=python) == 0

    def test_no_python_at_all(self, place: Lab, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (place.home / ".bash_profile").write_text(f"PATH={tmp_path}/empty\n")
        job = place.job("true")
        assert place.run(job, python="no-such-python") == EXIT_SETUP
        assert "there is no Python 3 on" in job.batch_output.read_text()

    def test_an_old_python_looks_for_a_newer_one(self, place: Lab, tmp_path: Path) -> None:
        old = sorted(Path.home().glob(".pyenv/versions/3.[5678].*/bin/python3"))
        if not old:
            pytest.skip("this machine has no Python older than 3.9")
        assert place.run(place.job("true"), python=str(old[0])) == 0
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python3").symlink_to(old[-1])
        (place.home / ".bash_profile").write_text(f"PATH={tmp_path}/bin\n")
        job = place.job("true")
        assert place.run(job, python=str(old[0])) == EXIT_SETUP
        assert "Python 3.9 or newer is needed" in job.batch_output.read_text()

    def test_paths_with_strange_letters(self, tmp_path: Path) -> None:
        folder = tmp_path / 'it\'s $(a) "test" & é'
        folder.mkdir()
        with lab(folder) as one:
            job = one.job("echo", "ran")
            assert one.run(job) == 0
            assert (job.path / "0.stdout").read_text() == "ran\n"


class TestBadSpool:
    def run(self, place: Lab, job: JobDir) -> str:
        assert place.run(job) == EXIT_SETUP
        output = job.batch_output.read_text()
        assert output.startswith("slurmbus: ")
        assert "Traceback" not in output
        return output

    def test_no_plan(self, place: Lab) -> None:
        job = place.job("true")
        (job.path / "plan.json").unlink()
        assert "plan.json can't be read: No such file" in self.run(place, job)
        assert not job.claims()

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "a"}', "\x00", '{"key":"a","task":0,"argv":3}'])
    def test_a_broken_plan(self, place: Lab, content: str) -> None:
        job = place.job("true")
        (job.path / "plan.json").write_text(content)
        assert "plan.json isn't a plan" in self.run(place, job)
        assert not job.claims()

    def test_no_folder_for_claims(self, place: Lab) -> None:
        job = place.job("true")
        (job.path / "starts").rmdir()
        assert "can't be claimed" in self.run(place, job)

    def test_not_inside_a_job(self, place: Lab) -> None:
        job = place.job("true")
        script = job.path / "script"
        script.write_text(batch_script(sys.executable, place.runner, job.path))
        done = subprocess.run(["bash", str(script)], env={"HOME": "/"}, capture_output=True, check=False, text=True)
        assert done.returncode == EXIT_SETUP
        assert "SLURM_JOB_ID isn't set" in done.stderr

    def test_streams_that_cant_be_made(self, place: Lab) -> None:
        job = place.job("true")
        (job.path / "0.stdout").mkdir()
        assert "the spool can't be written: Is a directory" in self.run(place, job)
        report = job.report(0)
        assert report is not None
        assert report.end is not None
        assert (report.end.error_code, report.end.exit_code) == ("spool-unusable", EXIT_SETUP)


@pytest.mark.parametrize("link", [False, True])
def test_nothing_but_the_standard_library_is_imported(place: Lab, link: bool) -> None:
    job = place.job("true", link=link)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-I", "-S", str(place.runner), str(job.path)],
        env={"SLURM_JOB_ID": "1", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert imported - {"imported package"} <= sys.stdlib_module_names | {"slurmbus_agent"}
    heavy = imported & {"typing", "ssl", "asyncio", "subprocess", "dataclasses"}
    assert heavy <= ({"ssl"} if link else set())  # for the link, and only when the payload runs
