"""A scheduler's child process that does what files tell it: ``python scripted_child.py FOLDER``.

``FOLDER/<kind>`` holds what calls of that kind do: ``hang`` (until the file goes), ``die``, ``garbage``, ``noise``,
``refuse``, ``unavailable``, ``unknown``; without the file they are answered. ``FOLDER/start`` is for the start itself.
``FOLDER/log`` lists the calls that were carried out. ``FOLDER/number`` says how many running jobs there are.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from slurmbus_agent.scheduler import child
from slurmbus_agent.scheduler.base import (
    AccountingRow,
    BatchJob,
    Observation,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from slurmbus_protocol.messages import Partition

FOLDER = Path(sys.argv[1])
ANSWERS = os.dup(1)


class Scripted:
    version = "26.05.5"

    def __init__(self) -> None:
        self._act("start")

    def ping(self) -> None:
        self._act("ping")

    def submit(self, job: BatchJob) -> int:
        self._act("submit", job.name)
        return 42

    def jobs(self) -> list[Observation]:
        self._act("jobs")
        many = FOLDER / "number"
        if many.exists():
            return [
                Observation(job_id=number, name=f"job{number}", state="RUNNING")
                for number in range(1, int(many.read_text()) + 1)
            ]
        return [Observation(job_id=42, name="job", state="RUNNING", flags=("COMPLETING",))]

    def job(self, job_id: int, task: int | None = None) -> Observation | None:
        self._act("job", job_id, *([] if task is None else [task]))
        return Observation(job_id=job_id, name="job", state="PENDING", reason="Priority") if job_id == 42 else None

    def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        self._act("accounting", jobs, since)
        return []

    def accounting_backlog(self) -> int:
        self._act("accounting_backlog")
        return 3

    def cancel(self, job_id: int, name: str) -> bool:
        self._act("cancel", job_id, name)
        return name == "job"

    def requeue(self, job_id: int, name: str) -> bool:
        self._act("requeue", job_id, name)
        return name == "job"

    def partitions(self) -> list[Partition]:
        self._act("partitions")
        return [Partition(name="main", state="UP", nodes=2, cpus=16, default=True)]

    def _act(self, kind: str, *arguments: object) -> None:
        with (FOLDER / "log").open("a") as log:
            log.write(" ".join([kind, *map(str, arguments)]) + "\n")
        todo = self._todo(kind)
        if todo == "hang":
            while self._todo(kind) == "hang":
                time.sleep(0.005)
        elif todo == "die":
            print("error: these are my last words", file=sys.stderr, flush=True)
            os.abort()
        elif todo == "garbage":
            os.write(ANSWERS, b"\xff" * 64)
        elif todo == "noise":
            os.write(1, b"libslurm: printed to standard output\n")
        elif todo == "refuse":
            raise Refused("Invalid partition", hint="known are: main")
        elif todo == "unavailable":
            raise Unavailable("Unable to contact slurm controller")
        elif todo == "unknown":
            raise OutcomeUnknown("Socket timed out")
        else:
            assert not todo

    @staticmethod
    def _todo(kind: str) -> str:
        try:
            return (FOLDER / kind).read_text()
        except FileNotFoundError:
            return ""


if __name__ == "__main__":
    child.die_with_parent()
    sys.exit(child.serve(Scripted))
