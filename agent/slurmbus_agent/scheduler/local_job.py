# pathlib takes as long to import as everything else here together.
# ruff: noqa: PTH104, PTH105, PTH108, PTH110, PTH112
"""One local job: starts its script, waits for its end and writes down what became of it.

Runs as a program of its own, ``python -I -S local_job.py FOLDER ID``, so that the job outlives the agent; standard
library only, because every job pays for what is imported here. Its standard input is the job's control pipe: a byte
in it is a cancel, and that somebody has it open for reading is the sign that the job is looked after.

The files of a job in FOLDER: ``ID.json`` is its state and stays; ``ID.spec``, ``ID.script`` and ``ID.control`` go when
it ends. ``ID.draft`` is the state of a job that nobody looks after yet.

``local_job.py FOLDER ARRAY SLOT`` works off a job array: one task after the other, as many beside each other as there
are slots. ``ARRAY.array`` says what the tasks share and which they are; ``ID.waiting`` is the state of one whose turn
hasn't come: whoever renames it to ``ID.json`` has it. A slot's lock tells that somebody works in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any

MARK = "SLURMBUS_LOCAL_JOB"
"""The variable that every process of a job has in its environment; it is how they are found."""
GONE_WITHIN = 2.0
"""Seconds to wait for killed processes; one in uninterruptible sleep must not keep the job from ending."""


def file_of(folder: str, job_id: int, kind: str) -> str:
    """Give the path of a job's file: json, draft, spec, script or control."""
    return f"{folder}/{job_id}.{kind}"


def mark_of(folder: str, job_id: int) -> str:
    """Give the value of MARK in the job's environment."""
    return f"{folder}/{job_id}"


def read(path: str) -> dict[str, Any]:
    """Read a JSON object."""
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def write(path: str, content: dict[str, Any], *, durable: bool = False) -> None:
    """Replace a JSON file at once: readers see the old or the new content; ``durable`` also survives a power cut."""
    new = f"{path}.{os.getpid()}"
    with open(new, "w", encoding="utf-8", opener=private) as file:
        json.dump(content, file)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(new, path)


def private(path: str, flags: int) -> int:
    """Open a file that only its owner may read; an ``opener`` for open()."""
    return os.open(path, flags, 0o600)


def take(folder: str, job_id: int) -> int | None:
    """Take a task whose turn hasn't come, and give its control pipe; None when somebody else has it.

    The pipe is open before the task counts as begun: nobody takes it for one that is looked after no more.
    """
    waiting, control = file_of(folder, job_id, "waiting"), file_of(folder, job_id, "control")
    if not os.path.exists(waiting):
        return None
    with contextlib.suppress(FileExistsError):
        os.mkfifo(control, 0o600)
    try:
        pipe = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # it has begun and ended meanwhile
        return None
    try:
        os.rename(waiting, file_of(folder, job_id, "json"))
    except FileNotFoundError:
        os.close(pipe)
        return None
    return pipe


def task_spec(folder: str, array: dict[str, Any], job_id: int, index: int) -> dict[str, Any]:
    """Give the spec of one task of an array."""
    own = {
        MARK: mark_of(folder, job_id),
        "SLURM_JOB_ID": str(job_id),
        "SLURM_JOBID": str(job_id),
        "SLURM_ARRAY_TASK_ID": str(index),
    }
    spec = array["spec"]
    output = spec["output"].replace(array["placeholder"], str(index))
    return {**spec, "environment": {**spec["environment"], **own}, "output": output}


def lock_slot(folder: str, array_id: int, slot: int) -> int | None:
    """Lock a slot of an array, and give what holds the lock; None when somebody works in it."""
    lock = os.open(file_of(folder, array_id, f"slot{slot}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def work_off(folder: str, array_id: int, slot: int) -> None:
    """Run the tasks of an array one after the other until none waits."""
    if lock_slot(folder, array_id, slot) is None:
        return
    array = read(file_of(folder, array_id, "array"))
    for index, job_id in array["tasks"]:
        pipe = take(folder, job_id)
        if pipe is None:
            continue
        os.dup2(pipe, 0)
        os.close(pipe)
        write(file_of(folder, job_id, "spec"), task_spec(folder, array, job_id, index))
        with contextlib.suppress(FileExistsError):
            os.link(file_of(folder, array_id, "script"), file_of(folder, job_id, "script"))
        job = _Job(folder, job_id)
        job.run()
        job.close()


def clean_up(folder: str, job_id: int) -> None:
    """Remove what a finished job doesn't need any more; its state stays."""
    for kind in ("spec", "script", "control"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file_of(folder, job_id, kind))


def processes(mark: str) -> list[int]:
    """Give the processes that have MARK=``mark`` in their environment; none on systems without ``/proc``."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if entry.isdigit():
            # Somebody else's, or gone by now.
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as environ:
                if wanted in environ.read().split(b"\0"):
                    found.append(int(entry))
    return found


def send_signal(mark: str, number: int, session: int | None = None) -> list[int]:
    """Signal every process of a job, also those that left its process group; give those found by their mark."""
    if session is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, number)
    found = processes(mark)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return found


def kill_all(mark: str, session: int | None = None) -> None:
    """Kill every process of a job and wait until they are gone."""
    give_up = time.monotonic() + GONE_WITHIN
    while send_signal(mark, signal.SIGKILL, session) and time.monotonic() < give_up:
        time.sleep(0.005)


class _Job:
    """The job while it is looked after."""

    def __init__(self, folder: str, job_id: int) -> None:
        self.folder = folder
        self.job_id = job_id
        self.path = file_of(folder, job_id, "json")
        self.mark = mark_of(folder, job_id)
        # Whoever comes first, we or the one who started us, makes the job visible.
        with contextlib.suppress(FileNotFoundError):
            os.rename(file_of(folder, job_id, "draft"), self.path)
        self.state = read(self.path)
        self.spec = read(file_of(folder, job_id, "spec"))
        self.wake, self.wake_writer = os.pipe()
        os.set_blocking(self.wake_writer, False)
        signal.set_wakeup_fd(self.wake_writer)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def close(self) -> None:
        """Let go of what the next job makes anew."""
        signal.set_wakeup_fd(-1)
        os.close(self.wake)
        os.close(self.wake_writer)

    def update(self, **changes: Any) -> None:
        self.state.update(changes)
        write(self.path, self.state, durable="end_time" in changes)

    def run(self) -> None:
        if select.select([0], [], [], 0)[0]:
            self.finish("CANCELLED", flags=[], exit_code=0, signal=0)
            return
        self.update(state="RUNNING", start_time=time.time(), reason=None)
        session, problem = self.start()
        verdict, status, usage = self.wait(session)
        kill_all(self.mark, session)
        exit_code, signal_number = _split(status)
        if verdict is None:
            verdict = "FAILED" if status or problem else "COMPLETED"
        # ru_maxrss is KiB on Linux and bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        self.finish(
            verdict,
            flags=[],
            exit_code=exit_code,
            signal=signal_number,
            reason=problem or _reason(verdict, exit_code, signal_number),
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            max_rss=usage.ru_maxrss * unit,
        )

    def finish(self, verdict: str, **changes: Any) -> None:
        self.update(state=verdict, end_time=time.time(), **changes)
        clean_up(self.folder, self.job_id)

    def start(self) -> tuple[int, str | None]:
        """Start the script in a session of its own; give its process id and what went wrong."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self.become_the_script()
            except OSError as error:
                os.write(writer, f"{error.strerror}: {error.filename}".encode())
            finally:
                os._exit(1)
        os.close(writer)
        with open(reader, encoding="utf-8", errors="replace") as report:
            return pid, report.read() or None

    def become_the_script(self) -> None:
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        output = os.open(self.spec["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.spec["work_dir"])
        script = file_of(self.folder, self.job_id, "script")
        with open(script, encoding="utf-8", errors="surrogateescape") as file:
            interpreter = file.readline()[2:].strip().split(None, 1)
        os.execve(interpreter[0], [*interpreter, script], self.spec["environment"])  # noqa: S606 - no shell is wanted

    def wait(self, session: int) -> tuple[str | None, int, Any]:
        """Wait for the script's end, or bring it about at a cancel or the time limit; give verdict, status, usage."""
        limit: float | None = self.spec["time_limit"]
        due = None if limit is None else time.monotonic() + limit
        early = self.spec.get("early_signal") if due is not None else None
        signal_due = max(0.0, due - early[1]) if due is not None and early else None
        verdict = None
        while True:
            reaped, status, usage = os.wait4(session, os.WNOHANG)
            if reaped:
                return verdict, status, usage
            dues = [at for at in (due, signal_due) if at is not None]
            patience = max(0.0, min(dues) - time.monotonic()) if dues else None
            ready, _, _ = select.select([0, self.wake], [], [], patience)
            for source in ready:
                os.read(source, 4096)
            if early and signal_due is not None and time.monotonic() >= signal_due:
                os.kill(session, early[0])  # not waited for yet: it is still ours
                signal_due = None
            overdue = due is not None and time.monotonic() >= due
            if verdict is None and (0 in ready or overdue):
                verdict = "CANCELLED" if 0 in ready else "TIMEOUT"
                self.update(state=verdict, flags=["COMPLETING"], reason=_reason(verdict, 0, 0))
                send_signal(self.mark, signal.SIGCONT, session)
                send_signal(self.mark, signal.SIGTERM, session)
                due = time.monotonic() + self.spec["kill_wait"]
            elif overdue:
                kill_all(self.mark, session)


def _split(status: int) -> tuple[int, int]:
    code = os.waitstatus_to_exitcode(status)
    return (code, 0) if code >= 0 else (0, -code)


def _reason(verdict: str, exit_code: int, signal_number: int) -> str | None:
    if verdict == "TIMEOUT":
        return "TimeLimit"
    if verdict == "FAILED":
        return f"RaisedSignal:{signal_number}" if signal_number else f"NonZeroExitCode:{exit_code}"
    return None


if __name__ == "__main__":
    if len(sys.argv) > 3:  # noqa: PLR2004 - with a slot
        work_off(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        _Job(sys.argv[1], int(sys.argv[2])).run()
