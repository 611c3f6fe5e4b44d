"""What became of a job: the figures of a success and the metadata that both ends of a story carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_slurmbus.steps import has_own_steps, memory_at_once
from slurmbus_protocol.messages import Live, Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.traces import trace_id

PREFIX = "slurmbus/"
TAIL_LINES = 50
_TAIL_BYTES = 64 * 1024
_SECONDS_PER_HOUR = 3600

Metadata = dict[str, dg.MetadataValue[Any]]


class Tail:
    """The last lines of a stream, however much is fed in."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._data = (self._data + data)[-_TAIL_BYTES:]

    @property
    def text(self) -> str:
        """The last 50 lines."""
        return "\n".join(self._data.decode(errors="replace").splitlines()[-TAIL_LINES:])

    @property
    def last_line(self) -> str:
        """The last line that isn't empty, or nothing."""
        lines = [line.strip() for line in self.text.splitlines()]
        return next((line for line in reversed(lines) if line), "")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a job used. None is what nobody measured."""

    nodes: int | None
    cpus: int | None
    elapsed: float | None
    cpu_seconds: float | None
    peak_memory: int | None

    @property
    def cpu_efficiency(self) -> float | None:
        """CPU time over allocated CPUs times elapsed time."""
        if self.cpu_seconds is None or not self.cpus or not self.elapsed:
            return None
        return self.cpu_seconds / (self.cpus * self.elapsed)

    @property
    def node_hours(self) -> float | None:
        """Nodes times elapsed time."""
        if not self.nodes or self.elapsed is None:
            return None
        return self.nodes * self.elapsed / _SECONDS_PER_HOUR


def is_one_task(record: Record) -> bool:
    """Tell whether the job asked for a single task, so that what it did was done by its payload."""
    if record.scheduler == "local":
        return True
    options = record.options
    counts = (options.ntasks, options.ntasks_per_node, options.nodes, record.nodes)
    return all((count or 1) == 1 for count in counts)


def is_on_one_node(record: Record) -> bool:
    """Tell whether the runner's node is the only one, so that it can see all of the job's processes."""
    return record.nodes == 1 or is_one_task(record)


def live_use(record: Record) -> Live | None:
    """Give what the runner saw of the last start on its node."""
    return record.starts[-1].live if record.starts else None


def ran_steps(record: Record) -> bool:
    """Tell whether job steps are known beside the batch script, which aren't below the runner."""
    live = live_use(record)
    return has_own_steps(record.accounting) or (live is not None and live.steps)


def needs_accounting(record: Record) -> bool:
    """Tell whether accounting knows more of the CPU time than the runner, which may miss a step's last seconds."""
    return not is_one_task(record) or ran_steps(record) or not record.starts or record.starts[-1].usage is None


def figures(record: Record) -> Figures:
    """Put together what the runner and Slurm's accounting measured.

    Each of them may miss something, so the largest one counts: the runner's children are known exactly, but not the
    tasks of an srun, and their memory one by one; of its node the runner sees what is there when it looks, or all of it
    where Slurm keeps a cgroup for the job; accounting knows each step, and looks at their memory now and then. Of
    several nodes the runner sees one, and accounting alone counts. Accounting's CPU time is with the runner's own, so
    it is left out where it can't tell more.
    """
    accounting, live = record.accounting, live_use(record)
    measured = record.starts[-1].usage if record.starts else None
    elapsed = measured.elapsed if measured else accounting.elapsed if accounting else None
    if elapsed is None and record.start_time is not None and record.end_time is not None:
        elapsed = max(0.0, record.end_time - record.start_time)
    seen = live if is_on_one_node(record) else None
    times, peaks = [], []
    if is_one_task(record) or accounting:  # of several tasks the runner's part isn't the job's
        times += [one.cpu_seconds for one in (measured, seen) if one]
    if accounting:
        times += [accounting.cpu_seconds] if needs_accounting(record) else []
        peaks += [accounting.max_rss or 0]
    if is_on_one_node(record):
        peaks += [measured.max_rss if measured else 0, seen.peak_rss if seen else 0]
        peaks += [memory_at_once(accounting)] if has_own_steps(accounting) else []
    return Figures(
        nodes=record.nodes or (accounting.alloc_nodes if accounting else None) or None,
        cpus=record.alloc_cpus or (accounting.alloc_cpus if accounting else None) or None,
        elapsed=elapsed,
        cpu_seconds=max(times, default=None),
        peak_memory=max(peaks, default=0) or None,
    )


def queue_wait(record: Record) -> float | None:
    """Give the seconds between the submit and the (last) start, as Slurm counts them."""
    if record.submit_time is None or record.start_time is None:
        return None
    return max(0.0, record.start_time - record.submit_time)


def success_metadata(record: Record) -> Metadata:
    """Give a finished job's figures; numbers are numbers, so that Dagster plots them over time."""
    used = figures(record)
    found: dict[str, dg.MetadataValue[Any] | None] = {
        "key": dg.MetadataValue.text(record.key),
        "site": dg.MetadataValue.text(record.site),
        "job_id": _int(record.job_id),
        "state": dg.MetadataValue.text(record.state.value),
        "partition": _text(record.partition),
        "nodes": _int(used.nodes),
        "node_list": _text(record.node_list),
        "cpus": _int(used.cpus),
        "submit_time": _time(record.submit_time),
        "start_time": _time(record.start_time),
        "end_time": _time(record.end_time),
        "queue_wait_seconds": _float(queue_wait(record)),
        "elapsed_seconds": _float(used.elapsed),
        "cpu_efficiency": _float(used.cpu_efficiency),
        "peak_memory_bytes": _int(used.peak_memory),
        "node_hours": _float(used.node_hours),
        "starts": _int(len(record.starts)) if len(record.starts) > 1 else None,
        "trace_id": _text(trace_id(record.trace)),
    }
    return prefixed(found)


def failure_metadata(record: Record, stderr_tail: str, payload_exception: str | None) -> Metadata:
    """Give what somebody needs who looks for the reason of a failure."""
    exit_code, signal_number = payload_end(record)
    found: dict[str, dg.MetadataValue[Any] | None] = {
        "key": dg.MetadataValue.text(record.key),
        "site": dg.MetadataValue.text(record.site),
        "job_id": _int(record.job_id),
        "state": dg.MetadataValue.text(record.state.value),
        "reason": _text(record.reason),
        "exit_code": _int(exit_code),
        "signal": _int(signal_number),
        "partition": _text(record.partition),
        "node_list": _text(record.node_list),
        "elapsed_seconds": _float(figures(record).elapsed),
        "peak_memory_bytes": _int(figures(record).peak_memory),
        "stderr_tail": _text(stderr_tail),
        "payload_exception": _text(payload_exception),
        "spool": _text(record.spool),
        "trace_id": _text(trace_id(record.trace)),
    }
    return prefixed(found)


def outputs_metadata(outputs: Mapping[str, Path]) -> Metadata:
    """Say where the files lie that came back."""
    return prefixed({f"output/{name}": dg.MetadataValue.path(str(path)) for name, path in outputs.items()})


def prefixed(found: Mapping[str, dg.MetadataValue[Any] | None]) -> Metadata:
    """Put our prefix before the names, and leave out what isn't known."""
    return {PREFIX + name: value for name, value in found.items() if value is not None}


def payload_end(record: Record) -> tuple[int | None, int | None]:
    """Give exit code and signal of the payload: the runner's word, or Slurm's where the runner couldn't say."""
    if record.starts:
        last = record.starts[-1]
        if last.exit_code is not None or last.signal is not None:
            return last.exit_code, last.signal
    return record.exit_code, record.signal


def succeeded(record: Record) -> bool:
    """Tell whether Slurm's final state is COMPLETED and the payload's exit code 0."""
    exit_code, signal_number = payload_end(record)
    return record.state is JobState.COMPLETED and not exit_code and not signal_number


class CompletedJob(dg.PipesClientCompletedInvocation):
    """What ``run()`` returns when the job succeeded.

    Attributes:
        record: the job's final record.
        outputs: the files that came back: name in the job's working directory -> path here.
    """

    def __init__(
        self, session: dg.PipesSession, *, record: Record, outputs: Mapping[str, Path], metadata: Metadata
    ) -> None:
        super().__init__(session, metadata=metadata)
        self.record = record
        self.outputs = dict(outputs)


def _text(value: str | None) -> dg.MetadataValue[Any] | None:
    return dg.MetadataValue.text(value) if value else None


def _int(value: int | None) -> dg.MetadataValue[Any] | None:
    return None if value is None else dg.MetadataValue.int(value)


def _float(value: float | None) -> dg.MetadataValue[Any] | None:
    return None if value is None else dg.MetadataValue.float(float(value))


def _time(value: float | None) -> dg.MetadataValue[Any] | None:
    return None if value is None else dg.MetadataValue.timestamp(float(value))
