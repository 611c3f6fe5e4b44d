"""What ``sacct`` prints: its command line and its rows, with every step of a job. Pure; see sacct(1).

sacct says more than pyslurm: CPU times to the millisecond (pyslurm cuts each step's to whole seconds), and what the
steps used of GPUs (gres/gpuutil, gres/gpumem) where the cluster records that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec

from slurmbus_agent.scheduler.array import expanded, split_name, task_name
from slurmbus_agent.scheduler.base import ANY_ID, AccountingRow
from slurmbus_protocol.messages import Accounting, AccountingStep, Used
from slurmbus_protocol.states import FINAL

MAX_STEPS = 50
"""Steps that a record keeps: a job may have thousands, and its record is one message of 12 KiB then."""
ENVIRONMENT = {"SLURM_TIME_FORMAT": "%s"}
"""Makes sacct print times as seconds since 1970."""

_DELIMITER = "\x1f"  # may not stand in a step's name as easily as "|"
_FIELDS = (
    "JobIDRaw",
    "JobName",
    "State",
    "ExitCode",
    "ElapsedRaw",
    "TotalCPU",
    "NTasks",
    "NNodes",
    "AllocCPUS",
    "AllocTRES",
    "TRESUsageInTot",
    "TRESUsageInMax",
    "TRESUsageInAve",
    "TRESUsageOutTot",
    "ConsumedEnergyRaw",
    "NodeList",
    "Submit",
    "Start",
    "End",
    "JobID",
)
_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4, "P": 1024**5}
_NO_ENERGY = 2.0**63
_SECONDS_PER_DAY = 86400

Row = Mapping[str, str]


def arguments(jobs: Iterable[tuple[int, str]], since: float) -> list[str]:
    """Give the arguments of ``sacct`` for these (id, name) pairs submitted after ``since``.

    Names are asked for as well: ids are recycled, and of jobs with the same id sacct shows the latest only.
    """
    wanted = set(jobs)
    ids = sorted({job_id for job_id, _ in wanted})
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(max(0.0, since)))
    return [
        "--parsable2",
        f"--delimiter={_DELIMITER}",
        "--noheader",
        "--noconvert",
        f"--starttime={start}",
        f"--name={','.join(sorted({split_name(name)[0] for _, name in wanted}))}",
        *([] if ANY_ID in ids else [f"--jobs={','.join(map(str, ids))}"]),
        f"--format={','.join(_FIELDS)}",
    ]


def body(text: str) -> str | None:
    """Give what follows the titles of the columns; None without them: then sacct itself hasn't printed it."""
    _, titles, rows = text.partition(_DELIMITER.join(_FIELDS) + "\n")
    return rows if titles else None


def rows(text: str) -> list[AccountingRow]:
    """Read what sacct printed: one row a job, its steps in it."""
    jobs: list[tuple[Row, list[AccountingStep]]] = []
    for line in text.splitlines():
        words = line.split(_DELIMITER)
        if len(words) != len(_FIELDS):
            continue  # a step whose name has a line break in it
        row = dict(zip(_FIELDS, words, strict=True))
        _, is_step, step = row["JobIDRaw"].partition(".")
        if not is_step:
            jobs.append((row, []))
        elif jobs:
            jobs[-1][1].append(_step(step, row))
    return [one for row, steps in jobs for one in _tasks(row, _job(row, steps))]


def _tasks(row: Row, job: AccountingRow) -> list[AccountingRow]:
    """Give the tasks of an array one by one, as they are called everywhere else; ``12_[4-9]`` never started."""
    array, is_task, tasks = row["JobID"].partition("_")
    if not is_task:
        return [job]
    try:
        indexes = expanded(tasks)
    except ValueError:
        return []  # of an array that isn't ours: ours are listed in full
    return [msgspec.structs.replace(job, job_id=int(array), name=task_name(job.name, index)) for index in indexes]


def summed(accounting: Accounting, steps: list[AccountingStep], energy_joules: float | None) -> Accounting:
    """Add the steps to what is known of a job, and what can be said of all of them together."""
    weighed = [(step.gpu_percent, step.elapsed or 1.0) for step in steps if step.gpu_percent is not None]
    used = Used(
        disk_read=_sum(step.disk_read for step in steps),
        disk_written=_sum(step.disk_written for step in steps),
        energy_joules=energy_joules,
        gpu_memory=max((step.gpu_memory for step in steps if step.gpu_memory is not None), default=None),
        gpu_percent=sum(part * time for part, time in weighed) / sum(time for _, time in weighed) if weighed else None,
    )
    return msgspec.structs.replace(
        accounting,
        max_rss=max((step.max_rss for step in steps if step.max_rss), default=accounting.max_rss),
        used=used if used != Used() else None,
        steps=_bounded(steps),
        steps_in_all=len(steps),
    )


def _bounded(steps: list[AccountingStep]) -> tuple[AccountingStep, ...]:
    if len(steps) <= MAX_STEPS:
        return tuple(steps)
    # Those that tell why a job failed, and the batch script's, come before the rest.
    ranked = sorted(range(len(steps)), key=lambda at: (steps[at].state == "COMPLETED" and steps[at].step.isdigit(), at))
    return tuple(steps[at] for at in sorted(ranked[:MAX_STEPS]))


def _job(row: Row, steps: list[AccountingStep]) -> AccountingRow:
    state, cancelled_by = _state(row["State"])
    exit_code, signal = _exit(row["ExitCode"])
    end = _time(row["End"])
    accounting = Accounting(
        state=state,
        exit_code=exit_code,
        signal=signal,
        elapsed=_number(row["ElapsedRaw"]) or 0.0,
        cpu_seconds=duration(row["TotalCPU"]),
        alloc_cpus=_count(row["AllocCPUS"]) or 0,
        alloc_nodes=_count(row["NNodes"]) or 0,
        alloc_tres=row["AllocTRES"],
        cancelled_by=cancelled_by,
    )
    return AccountingRow(
        job_id=int(row["JobIDRaw"]),
        name=row["JobName"],
        final=state in FINAL and end is not None,
        accounting=summed(accounting, steps, _energy(row["ConsumedEnergyRaw"])),
        node_list=None if row["NodeList"] in {"", "None assigned"} else row["NodeList"],
        submit_time=_time(row["Submit"]),
        start_time=_time(row["Start"]),
        end_time=end,
    )


def _step(step: str, row: Row) -> AccountingStep:
    state, _ = _state(row["State"])
    exit_code, signal = _exit(row["ExitCode"])
    total, most, mean = (tres(row[f"TRESUsageIn{which}"]) for which in ("Tot", "Max", "Ave"))
    return AccountingStep(
        step=step,
        name=row["JobName"],
        state=state,
        exit_code=exit_code,
        signal=signal,
        elapsed=_number(row["ElapsedRaw"]) or 0.0,
        tasks=_count(row["NTasks"]),
        nodes=_count(row["NNodes"]),
        alloc_cpus=_count(row["AllocCPUS"]),
        cpu_seconds=duration(row["TotalCPU"]),
        max_rss=_whole(most.get("mem")),
        ave_rss=_whole(mean.get("mem")),
        disk_read=_whole(total.get("fs/disk")),
        disk_written=_whole(tres(row["TRESUsageOutTot"]).get("fs/disk")),
        energy_joules=_energy(row["ConsumedEnergyRaw"]),
        gpu_memory=_whole(most.get("gres/gpumem")),
        gpu_percent=mean.get("gres/gpuutil"),
        start_time=_time(row["Start"]),
        end_time=_time(row["End"]),
    )


def tres(text: str) -> dict[str, float]:
    """Read trackable resources, e.g. ``cpu=00:01:02,mem=2000M,gres/gpu:a100=2,gres/gpuutil=45``.

    Sizes become bytes, times seconds. What is no number is left out.
    """
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        number = duration(value) if ":" in value else size(value)
        if name and number is not None:
            found[name] = number
    return found


def size(text: str) -> float | None:
    """Read a number with a unit of 1024: ``2000M`` is bytes; None when it is none."""
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        return float(text.rstrip("KMGTPkmgtp")) * unit
    except ValueError:
        return None


def duration(text: str) -> float:
    """Read ``[days-][hours:]minutes:seconds[.fraction]``; 0 for what is none."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    try:
        for part in clock.split(":"):
            total = total * 60 + float(part)
        return total + (int(days) * _SECONDS_PER_DAY if days else 0)
    except ValueError:
        return 0.0


def _state(text: str) -> tuple[str, str]:
    """Take ``CANCELLED by 1001`` apart."""
    state, _, by = text.partition(" by ")
    return state, by


def _exit(text: str) -> tuple[int, int]:
    code, _, signal = text.partition(":")
    return int(code or 0), int(signal or 0)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _energy(text: str) -> float | None:
    """Read joules: 0 and slurm.h's NO_VAL64 are written where nothing measures them."""
    joules = _number(text)
    return joules if joules and joules < _NO_ENERGY else None


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _time(text: str) -> float | None:
    """Read seconds since 1970; ``Unknown`` and ``None`` are no time."""
    return _number(text) if text not in {"None", "Unknown"} else None


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
