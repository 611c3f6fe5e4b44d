"""What ``squeue`` is asked and what it prints; pure. See squeue(1).

Other jobs of the user may have any bytes in their names, and a site's wrapper may print lines of its own. So every
field ends with a mark that nobody can foresee, and the titles prove that squeue itself has printed the list.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

from slurmbus_agent.scheduler.array import expanded, task_name
from slurmbus_agent.scheduler.base import Observation, Unavailable
from slurmbus_protocol.states import FINAL

UNKNOWN_JOB = "Invalid job id specified"
"""The controller's answer when it doesn't know a job."""

_FIELDS = (
    "JobID",
    "ArrayJobID",
    "ArrayTaskID",
    "Name",
    "State",
    "exit_code",
    "Reason",
    "Partition",
    "NumNodes",
    "NodeList",
    "NumCPUs",
    "SubmitTime",
    "StartTime",
    "EndTime",
    "RestartCnt",
)
_BASE_OF_FLAG = {
    "COMPLETING": "RUNNING",
    "CONFIGURING": "RUNNING",
    "RESIZING": "RUNNING",
    "SIGNALING": "RUNNING",
    "STAGE_OUT": "RUNNING",
    "STOPPED": "RUNNING",
    "POWER_UP_NODE": "RUNNING",
    "REQUEUED": "PENDING",
    "REQUEUE_FED": "PENDING",
    "REQUEUE_HOLD": "PENDING",
    "RESV_DEL_HOLD": "PENDING",
    "SPECIAL_EXIT": "PENDING",
}
"""squeue shows one word of a state that has several; the base state below a flag is at least of this kind."""
_NO_TASK = "N/A"
Row = dict[str, str]


def new_mark() -> str:
    """Make the end of a field."""
    return f"@{secrets.token_hex(6)}@"


def arguments(mark: str) -> list[str]:
    """Give squeue's arguments, but for the choice of jobs."""
    return ["--all", "--states=all", f"--Format={','.join(f'{name}:{mark}' for name in _FIELDS)}"]


def observations(text: str, mark: str) -> list[Observation]:
    """Read what squeue printed.

    Raises:
        Unavailable: that isn't what squeue prints.
    """
    return [seen for row in _rows(text, mark) for seen in _observed(row)]


def _rows(text: str, mark: str) -> Iterator[Row]:
    # After the last mark there is a line break only, or what a wrapper adds.
    cells = [cell.removeprefix("\n") for cell in text.split(mark)[:-1]]
    if not cells or len(cells) % len(_FIELDS) or not cells[0].splitlines()[-1:] == ["JOBID"]:
        raise Unavailable(f"squeue printed something else than a list of jobs: {text[:200]!r}")
    for start in range(len(_FIELDS), len(cells), len(_FIELDS)):
        yield dict(zip(_FIELDS, (cell.strip() for cell in cells[start : start + len(_FIELDS)]), strict=True))


def _observed(row: Row) -> Iterator[Observation]:
    """Give the job of a row, or the tasks of an array that share one."""
    single = _observation(row, int(row["JobID"]), row["Name"])
    if row["ArrayTaskID"] == _NO_TASK:
        yield single
        return
    try:
        tasks = expanded(row["ArrayTaskID"])
    except ValueError:
        return  # of an array that isn't ours: ours are listed in full
    array = int(row["ArrayJobID"])
    for task in tasks:
        own = single.job_id if len(tasks) == 1 and single.state != "PENDING" else None
        yield _observation(row, array, task_name(row["Name"], task), own)


def _observation(row: Row, job_id: int, name: str, own: int | None = None) -> Observation:
    word = row["State"]
    state = _BASE_OF_FLAG.get(word, word)
    flags = (word,) if word in _BASE_OF_FLAG else ()
    ended = state in FINAL
    started = state != "PENDING"
    exit_code, signal = _exit(row["exit_code"]) if ended else (None, None)
    begin = _number(row["StartTime"])
    return Observation(
        job_id=job_id,
        name=name,
        state=state,
        flags=flags,
        reason=_word(row["Reason"]),
        partition=_word(row["Partition"]),
        nodes=_number(row["NumNodes"]),
        node_list=_word(row["NodeList"]),
        alloc_cpus=_number(row["NumCPUs"]) if started else None,
        exit_code=exit_code,
        signal=signal,
        submit_time=_number(row["SubmitTime"]),
        start_time=begin if started else None,
        start_estimate=None if started else begin,
        end_time=_number(row["EndTime"]) if ended else None,
        restarts=_number(row["RestartCnt"]) or 0,
        task_job_id=own,
    )


def _exit(text: str) -> tuple[int | None, int | None]:
    """Read ``code:signal``, or the wait status as which it is printed before 23.02."""
    code, colon, signal = text.partition(":")
    if not code.isdigit() or (colon and not signal.isdigit()):
        return None, None
    if colon:
        return int(code), int(signal)
    status = int(code)
    return (0, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), 0)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _word(text: str) -> str | None:
    return None if text in {"", "None", "(null)", "N/A"} else text
