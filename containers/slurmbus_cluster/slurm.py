"""Questions to the cluster's Slurm, asked by its own commands."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from typing import cast

from .errors import ConditionTimeout
from .host import Host

SACCT_FIELDS = (
    "JobID,JobName,User,Account,Partition,QOS,State,ExitCode,Reason,NodeList,Submit,Start,End,Elapsed,"
    "AllocTRES,ReqMem,MaxRSS,TotalCPU,UserCPU,SystemCPU,Comment"
)
"""The fields of `accounting`; memory in bytes."""

COMPUTE = re.compile(r"c\d+")
_SEPARATOR = "\x1f"
POLL = 0.1
"""Seconds between two looks; a look is a process in a container and takes about 0.1 s itself."""


def job(host: Host, job_id: int | str) -> dict[str, object]:
    """Return the controller's record of a job."""
    answer = json.loads(host.exec(["scontrol", "show", "job", str(job_id), "--json"]).stdout)
    return cast("dict[str, object]", answer["jobs"][0])


def job_state(host: Host, job_id: int | str) -> str:
    """Return a job's state as the controller shows it, or nothing when it doesn't know the job."""
    shown = host.exec(["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job_id}"], check=False).stdout
    return shown.strip().splitlines()[0] if shown.strip() else ""


def wait_job(host: Host, job_id: int | str, states: Iterable[str], timeout: float) -> str:
    """Wait until the controller shows a job in one of these states and return it."""
    wanted = {states} if isinstance(states, str) else set(states)
    deadline = time.monotonic() + timeout
    while (state := job_state(host, job_id)) not in wanted:
        if time.monotonic() > deadline:
            raise ConditionTimeout(f"job {job_id} is {state or 'unknown'}, not {' or '.join(sorted(wanted))}")
        time.sleep(POLL)
    return state


def accounting(host: Host, job_id: int | str) -> list[dict[str, str]]:
    """Return accounting's rows of a job and its steps."""
    # Without a start time sacct looks at today only. A comment may hold any printable character.
    command = ["sacct", "-j", str(job_id), "-S", "1970-01-02", "-P", "--noconvert", f"--format={SACCT_FIELDS}"]
    header, *rows = host.exec([*command, f"--delimiter={_SEPARATOR}"]).stdout.splitlines()
    names = header.split(_SEPARATOR)
    return [dict(zip(names, row.split(_SEPARATOR), strict=True)) for row in rows]


def node_states(host: Host) -> dict[str, str]:
    """Return the state of every compute node in lower case (`idle`, `mixed`, `down*`, …)."""
    shown = host.exec(["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T"], check=False).stdout
    return {(fields := line.split())[0]: fields[1] for line in shown.splitlines()}


def wait_nodes(host: Host, nodes: Sequence[str], state: str, timeout: float) -> None:
    """Wait until all of these nodes are in a state."""
    deadline = time.monotonic() + timeout
    while any((states := node_states(host)).get(name) != state for name in nodes):
        if time.monotonic() > deadline:
            raise ConditionTimeout(f"nodes {', '.join(nodes)} aren't {state} after {timeout:.0f} s: {states}")
        time.sleep(POLL)
