"""Asks the witnesses after a run: the payloads' notes, Slurm's accounting, the spool and the bus."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import aclosing

from chaos.history import Execution, JobHistory, SlurmRow, StoredChunk, StoredRecord
from chaos.rig import SPOOL, Rig
from chaos.workload import RUNS
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, Stored
from slurmbus_protocol.messages import Chunk, Record
from slurmbus_protocol.reading import create_reader, pull, stored
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

SETTLE_SECONDS = 20.0
"""How long accounting gets to hear of the last ends."""
_NOT_OVER = {"PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUED", "RESIZING"}


def executions(rig: Rig) -> dict[str, list[Execution]]:
    """Read the payloads' notes, by job."""
    text = rig.cluster.exec("ctld", ["sh", "-c", f"cd {RUNS} && grep -rH '' . || true"]).stdout
    found: dict[str, dict[tuple[int, str, int], Execution]] = defaultdict(dict)
    for line in text.splitlines():
        name, _, note = line.partition(":")
        what, job_id, node, pid, at, *extra = note.split()
        who = (int(job_id), node, int(pid))
        of_job = found[name.removeprefix("./")]
        if what == "begin":
            of_job[who] = Execution(*who, begin=float(at), last_seen=float(at))
        else:
            of_job[who].last_seen = float(at)
        if what == "end":
            of_job[who].end = float(at)
            of_job[who].exit_code = int(extra[0])
    return {name: sorted(runs.values(), key=lambda run: run.begin) for name, runs in found.items()}


def slurm_rows(rig: Rig) -> dict[str, list[SlurmRow]]:
    """Read accounting's rows of every start of every job, by the job's name, once nothing changes any more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        rows = _slurm_rows(rig)
        if all(row.state.split()[0] not in _NOT_OVER for row in rows) or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    found: dict[str, list[SlurmRow]] = defaultdict(list)
    for row in rows:
        found[row.name].append(row)
    return {name: sorted(of_name, key=lambda row: (row.submit or 0, row.start or 0)) for name, of_name in found.items()}


def _slurm_rows(rig: Rig) -> list[SlurmRow]:
    fields = "JobIDRaw,JobName,State,ExitCode,NodeList,Submit,Start,End"
    command = ["sacct", "--duplicates", "--allusers", "-X", "-S", "1970-01-02", "-nP", f"--format={fields}"]
    text = rig.cluster.exec("ctld", command, env={"SLURM_TIME_FORMAT": "%s"}).stdout
    found = []
    for line in text.splitlines():
        job_id, name, state, code, node, *times = line.split("|")
        exit_code, number = code.split(":")
        submit, start, end = (float(value) if value.isdigit() else None for value in times)
        found.append(SlurmRow(int(job_id), name, state, int(exit_code), int(number), node, submit, start, end))
    return found


def read_spool(rig: Rig, jobs: dict[str, JobHistory]) -> None:
    """Put down claims and sizes of streams, and the streams of starts that didn't note their end."""
    text = rig.cluster.exec("ctld", ["find", f"{SPOOL}/jobs", "-printf", "%P|%s|%l\n"]).stdout
    for line in text.splitlines():
        path, size, target = line.split("|")
        folder, _, rest = path.partition("/")
        job = jobs.get(folder.partition(".")[0])
        if job is None:
            continue
        if rest.startswith("starts/"):
            job.spooled.claims[int(rest.removeprefix("starts/"))] = target
        number, _, name = rest.partition(".")
        if number.isdecimal() and name in set(Stream):
            job.spooled.sizes[int(number), Stream(name)] = int(size)
    for job in jobs.values():
        if all(run.end is not None for run in job.executions) and len(job.executions) == len(job.spooled.claims):
            continue
        for (start, stream), length in job.spooled.sizes.items():
            if length:
                path = f"{SPOOL}/jobs/{job.key}.0/{start}.{stream}"
                said = rig.cluster.exec("ctld", ["cat", path]).stdout
                job.spooled.contents[start, stream] = said.encode(errors="surrogateescape")


async def read_bus(bus: Bus, site: str, jobs: dict[str, JobHistory]) -> dict[str, JobState]:
    """Put down every record and the place of every chunk that the bus holds; give the last state of all other jobs."""
    others: dict[str, JobState] = {}
    prefix = f"{subjects.PREFIX}.{site}"
    for item in await _everything(bus, subjects.STATES, f"{prefix}.job.*.*.state"):
        if not item.data:
            continue
        record = codec.decode_as(item.data, Record)
        if record.key in jobs:
            jobs[record.key].records.append(StoredRecord(item.sequence, item.time, record))
        else:
            others[record.key] = record.state
    for stream, pattern in ((subjects.MESSAGES, f"{prefix}.msg.*.*.*"), (subjects.LOGS, f"{prefix}.log.*.*.*.*")):
        for item in await _everything(bus, stream, pattern):
            address = subjects.parse_stream(item.subject)
            job = jobs.get(address.key)
            if job is not None and item.data:
                chunk = codec.decode_as(item.data, Chunk)
                job.chunks.append(
                    StoredChunk(
                        address.start, address.stream, item.sequence, chunk.offset, len(chunk.data), chunk.skipped
                    )
                )
    return others


async def _everything(bus: Bus, stream: str, pattern: str) -> list[Stored]:
    info = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
    if not info["state"].get("subjects"):
        return []
    found = []
    reader = await create_reader(bus, stream, [pattern], None)
    async with aclosing(pull(bus, stream, reader)) as messages:
        async for msg in messages:
            found.append(stored(msg))
            if msg.metadata.num_pending == 0:
                return found
    raise AssertionError
