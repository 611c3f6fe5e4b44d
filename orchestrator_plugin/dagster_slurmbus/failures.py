"""Failed jobs as ``dagster.Failure``s whose message says what happened and what to do next."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import dagster as dg

from dagster_slurmbus.outcomes import Metadata, Tail, failure_metadata, figures, payload_end
from dagster_slurmbus.units import clock, size
from dagster_slurmbus.units import minutes as words
from slurmbus_protocol.arrays import slurm_id
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import JobOptions, Record
from slurmbus_protocol.states import JobState

RETRYABLE = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.PREEMPTED})
"""Ends after which a RetryPolicy may run the step again; the others need another request, or a person."""
BECAUSE_OF_A_SIBLING = "its sibling"
"""What the reason of a cancel begins with by which an array ends its other tasks."""

_MIB = 1024**2
_UNITS = {"K": 1024, "M": _MIB, "G": 1024**3, "T": 1024**4}
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127
_LIMIT = 300
_TRES_MEMORY = re.compile(r"(?:^|,)mem=(?P<number>[\d.]+)(?P<unit>[KMGT])")
_CANCELLED_BY = re.compile(r"CANCELLED by (?P<uid>\d+)")


def failure(
    record: Record,
    stderr: Tail,
    payload_exception: str | None = None,
    *,
    attempts: int = 1,
    more: Metadata | None = None,
) -> dg.Failure:
    """Give the failure for a job that didn't succeed.

    Args:
        record: the job's.
        stderr: its last lines.
        payload_exception: what a Python payload ended with.
        attempts: how many jobs there were, each asking for more than the one before.
        more: further metadata.
    """
    metadata: Metadata = {**(more or {}), **failure_metadata(record, stderr.text, payload_exception)}
    last_words = (payload_exception or "").strip().splitlines()[-1:] or [stderr.last_line]
    return dg.Failure(
        describe(record, last_words[0]) + (f". It was the last of {attempts} attempts" if attempts > 1 else ""),
        metadata=metadata,
        allow_retries=record.state in RETRYABLE,
    )


def may_run_again(record: Record) -> bool:
    """Tell whether a RetryPolicy runs a task of an array again that ended so; with its step it runs the others again.

    One that only had to end with its siblings is run again with them.
    """
    if record.state is JobState.CANCELLED and record.cancel is not None:
        return record.cancel.reason.startswith(BECAUSE_OF_A_SIBLING)
    return record.state in RETRYABLE


def from_error(error: SlurmbusError, metadata: Metadata | None = None) -> dg.Failure:
    """Give the failure for an error between here and the agent."""
    return dg.Failure(str(error), metadata=metadata, allow_retries=error.retryable)


def describe(record: Record, last_words: str = "") -> str:
    """Say in a sentence or two what happened to a job and what to do next."""
    what = "local job" if record.scheduler == "local" else "Slurm job"
    name = f"{what} {slurm_id(record)}" if record.job_id is not None else "the job"
    return f"{name}: {_STORIES[record.state](record, last_words)}"


def _failed(record: Record, last_words: str) -> str:
    exit_code, number = payload_end(record)
    words = f". Its last words: {last_words[:_LIMIT]}" if last_words else ""
    if "No such file or directory" in last_words:
        words += " (a file of this machine is there only when it goes along: name it in files=[…] or extra_files=[…])"
    error = record.reason if record.error_code == "not-started" else record.starts[-1].error if record.starts else None
    if error:
        return f"the payload couldn't be started{_where(record)}: {error}{_hint(record)}"
    if number:
        hint = "; signal 9 often means out of memory: then ask for more with mem=…" if number == signal.SIGKILL else ""
        return f"the payload was killed by signal {number} ({_signal(number)}){_where(record)}{hint}{words}"
    if exit_code == _NOT_FOUND:
        return f"exit code 127{_where(record)}: a command wasn't found; check its name and PATH on the site{words}"
    if exit_code == _NOT_EXECUTABLE:
        return f"exit code 126{_where(record)}: a command was found but can't be executed{words}"
    if exit_code:
        return f"the payload ended with exit code {exit_code}{_where(record)}{_after(record)}{words}"
    says = f"Slurm says {record.slurm_state}" if record.slurm_state else "it failed"
    return f"{says}{_because(record)}{_where(record)}{_hint(record)}{words}"


def _timeout(record: Record, _: str) -> str:
    minutes = record.options.time_limit_minutes
    if minutes is None:
        limit, more = "the time limit of its partition", 'a longer one with time_limit="HH:MM:SS"'
    else:
        limit, more = f"its time limit of {words(minutes)}", f'more with time_limit="{clock(2 * minutes)}"'
    return f"it reached {limit} and was ended{_where(record)}; ask for {more}, as far as the partition allows"


def _out_of_memory(record: Record, _: str) -> str:
    asked, peak = asked_memory(record), figures(record).peak_memory
    parts = [f"asked for {size(asked)}" if asked else "asked for no certain amount"]
    if peak:
        parts.append(f"peak {size(peak)}")
    more = f"{-(-2 * asked // _MIB)}M" if asked else "…"
    if asked and (2 * asked) % _UNITS["G"] == 0:
        more = f"{2 * asked // _UNITS['G']}G"
    return f'out of memory: {", ".join(parts)}{_where(record)}; ask for more with mem="{more}"'


def _node_fail(record: Record, _: str) -> str:
    return (
        f"a node failed while the job ran{_where(record)}{_because(record)}; run it again, "
        "or let a RetryPolicy or requeue=True do that"
    )


def _boot_fail(record: Record, _: str) -> str:
    return f"the nodes couldn't be made ready for the job{_where(record)}{_because(record)}; run it again"


def _preempted(record: Record, _: str) -> str:
    return (
        f"it had to make way for a job of higher priority{_where(record)}; run it again, "
        "or let a RetryPolicy or requeue=True do that"
    )


def _deadline(record: Record, _: str) -> str:
    return f"it couldn't be finished before its deadline{_because(record)}"


def _cancelled(record: Record, _: str) -> str:
    if record.cancel is not None:
        why = f" ({record.cancel.reason})" if record.cancel.reason else ""
        return f"it was cancelled by {record.cancel.submitter}{why}"
    told = _CANCELLED_BY.search(f"{record.slurm_state} {record.accounting.state if record.accounting else ''}")
    by = record.accounting.cancelled_by if record.accounting else ""
    uid = told["uid"] if told else by if by.isdecimal() else None
    who = f"user id {uid}" if uid else by or "somebody"
    return f"{who} cancelled it in Slurm{_because(record)}{_where(record)}, not through Dagster"


def _rejected(record: Record, _: str) -> str:
    return f"refused: {record.reason or 'no reason was given'}{_hint(record)}"


def _lost(record: Record, _: str) -> str:
    return (
        f"nobody knows what became of it: {record.reason or 'Slurm has no record of its end'}{_hint(record)}. Look at "
        "its output before you run it again"
    )


_STORIES: dict[JobState, Callable[[Record, str], str]] = {
    JobState.COMPLETED: _failed,
    JobState.FAILED: _failed,
    JobState.TIMEOUT: _timeout,
    JobState.OUT_OF_MEMORY: _out_of_memory,
    JobState.NODE_FAIL: _node_fail,
    JobState.BOOT_FAIL: _boot_fail,
    JobState.PREEMPTED: _preempted,
    JobState.DEADLINE: _deadline,
    JobState.CANCELLED: _cancelled,
    JobState.REJECTED: _rejected,
    JobState.LOST: _lost,
}


def asked_memory(record: Record) -> int | None:
    """Give the bytes of memory on a node that the job had: what was asked for, or what accounting says it got."""
    options: JobOptions = record.options
    if options.mem_per_node_mib:
        return options.mem_per_node_mib * _MIB
    if options.mem_per_cpu_mib:
        return options.mem_per_cpu_mib * (options.cpus_per_task or 1) * _MIB
    told = _TRES_MEMORY.search(record.accounting.alloc_tres) if record.accounting else None
    return int(float(told["number"]) * _UNITS[told["unit"]]) if told else None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown here"


def _where(record: Record) -> str:
    return f" on {record.node_list}" if record.node_list else ""


def _after(record: Record) -> str:
    elapsed = figures(record).elapsed
    return f" after {elapsed:.1f} s" if elapsed is not None else ""


def _because(record: Record) -> str:
    return f" ({record.reason})" if record.reason and record.reason != "None" else ""


def _hint(record: Record) -> str:
    return f"; {record.hint}" if record.hint else ""
