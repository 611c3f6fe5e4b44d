"""What became of a job: figures on success, plain words on failure."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from dagster_slurmbus.failures import RETRYABLE, describe, failure, from_error
from dagster_slurmbus.metrics import memory_efficiency
from dagster_slurmbus.outcomes import (
    TAIL_LINES,
    Tail,
    figures,
    is_one_task,
    needs_accounting,
    succeeded,
    success_metadata,
)
from dagster_slurmbus.units import size
from slurmbus_protocol.errors import BusUnreachable, NotAllowed
from slurmbus_protocol.messages import Accounting, AccountingStep, CancelAsked, JobOptions, Live, Record, Start, Usage
from slurmbus_protocol.states import FINAL, JobState

KEY = "01JD0000000000000000000000"
GIB = 1024**3


def record(state: JobState = JobState.COMPLETED, **fields: Any) -> Record:
    base: dict[str, Any] = {
        "key": KEY,
        "site": "leonardo-alice",
        "epoch": 1,
        "state": state,
        "name": "train",
        "submitter": "alice@laptop",
        "created_at": 990.0,
        "updated_at": 1100.0,
        "scheduler": "native",
        "job_id": 17,
        "partition": "main",
        "nodes": 1,
        "node_list": "c1",
        "alloc_cpus": 2,
        "submit_time": 1000.0,
        "start_time": 1005.0,
        "end_time": 1015.0,
        "starts": (start(),),
        "spool": "/home/alice/.slurmbus/jobs/x",
    }
    return Record(**base | fields)


def start(**fields: Any) -> Start:
    base: dict[str, Any] = {"number": 0, "job_id": 17, "node": "c1", "nonce": "n", "exit_code": 0}
    return Start(**base | fields)


def accounting(**fields: Any) -> Accounting:
    base: dict[str, Any] = {
        "state": "COMPLETED",
        "exit_code": 0,
        "signal": 0,
        "elapsed": 10.0,
        "cpu_seconds": 30.0,
        "alloc_cpus": 4,
        "max_rss": 2 * GIB,
        "alloc_nodes": 2,
    }
    return Accounting(**base | fields)


USAGE = Usage(cpu_seconds=15.0, max_rss=GIB, elapsed=9.5)

# ------------------------------------------------------------------ success


def test_every_promised_figure_is_a_number_that_dagster_can_plot() -> None:
    metadata = success_metadata(record(starts=(start(usage=USAGE),)))
    values = {name.removeprefix("slurmbus/"): value.value for name, value in metadata.items()}
    assert values == {
        "key": KEY,
        "site": "leonardo-alice",
        "job_id": 17,
        "state": "COMPLETED",
        "partition": "main",
        "nodes": 1,
        "node_list": "c1",
        "cpus": 2,
        "submit_time": 1000.0,
        "start_time": 1005.0,
        "end_time": 1015.0,
        "queue_wait_seconds": 5.0,
        "elapsed_seconds": 9.5,
        "cpu_efficiency": pytest.approx(15 / 19),
        "peak_memory_bytes": GIB,
        "node_hours": pytest.approx(9.5 / 3600),
    }
    assert isinstance(metadata["slurmbus/submit_time"], dg.TimestampMetadataValue)
    assert isinstance(metadata["slurmbus/cpu_efficiency"], dg.FloatMetadataValue)
    assert isinstance(metadata["slurmbus/job_id"], dg.IntMetadataValue)


def test_of_several_tasks_accounting_alone_counts() -> None:
    many = record(options=JobOptions(ntasks=4), nodes=2, alloc_cpus=4, starts=(start(usage=USAGE),))
    assert not is_one_task(many)
    assert figures(many).cpu_efficiency is None
    counted = record(options=JobOptions(ntasks=4), nodes=2, alloc_cpus=4, accounting=accounting())
    assert figures(counted).cpu_efficiency == pytest.approx(30 / 40)
    assert figures(counted).node_hours == pytest.approx(20 / 3600)
    assert figures(counted).peak_memory == 2 * GIB


def live(**fields: Any) -> Live:
    base = {"at": 1.0, "node": "c1", "cpus": 2, "cpu_seconds": 12.0, "cpu_percent": 90.0, "rss": 0, "processes": 3}
    return Live(**base | {"peak_rss": 3 * GIB} | fields)


def step(name: str, gib: float, start: float | None = None, end: float | None = None, tasks: int = 1) -> AccountingStep:
    rss = int(gib * GIB)
    return AccountingStep(
        step=name, name=name, state="COMPLETED", tasks=tasks, ave_rss=rss, max_rss=rss, start_time=start, end_time=end
    )


def test_of_one_task_the_larger_of_what_was_waited_for_and_what_was_seen_counts() -> None:
    """Three processes at once, or the tasks of an srun, are more than the largest child."""
    seen = record(starts=(start(usage=USAGE, live=live()),))
    assert (figures(seen).cpu_seconds, figures(seen).peak_memory) == (15.0, 3 * GIB)
    assert not needs_accounting(seen)
    more = record(starts=(start(usage=USAGE, live=live(cpu_seconds=19.0, peak_rss=10)),))
    assert (figures(more).cpu_seconds, figures(more).peak_memory) == (19.0, GIB)
    assert figures(more).cpu_efficiency == 1.0
    half = record(starts=(start(usage=USAGE, live=live()),), options=JobOptions(mem_per_node_mib=6 * 1024))
    assert memory_efficiency(half) == 0.5


def test_of_a_job_with_steps_accounting_counts_as_well() -> None:
    seen = record(starts=(start(usage=USAGE, live=live(steps=True)),))
    assert needs_accounting(seen)
    told = record(starts=seen.starts, accounting=accounting(steps=(step("batch", 0.5), step("0", 1, tasks=4))))
    assert (figures(told).cpu_seconds, figures(told).peak_memory) == (30.0, int(4.5 * GIB))
    # Without steps of its own accounting knows of the runner beside the payload, and nothing else.
    plain = record(starts=(start(usage=USAGE),), accounting=accounting(steps=(step("batch", 0.5), step("extern", 0))))
    assert (figures(plain).cpu_seconds, figures(plain).peak_memory) == (15.0, 2 * GIB)


def test_on_one_node_the_runner_sees_several_tasks_as_well() -> None:
    options = JobOptions(ntasks=4, mem_per_node_mib=12 * 1024)
    seen = record(options=options, starts=(start(usage=USAGE, live=live(cpu_seconds=31.0)),), accounting=accounting())
    assert (figures(seen).cpu_seconds, figures(seen).peak_memory) == (31.0, 3 * GIB)
    assert memory_efficiency(seen) == 0.25


@pytest.mark.parametrize(
    ("steps", "gib"),
    [
        # Ray over three nodes: the head in the batch step, the others by one srun.
        ((step("batch", 2, 0, 100), step("extern", 0, 0, 100), step("0", 3, 1, 99, tasks=2)), 8),
        # One program after the other.
        ((step("batch", 1, 0, 100), step("0", 3, 1, 50), step("1", 2, 50, 99), step("2", 1, 99, 99)), 4),
        # Side by side, the third one when the first has ended.
        ((step("batch", 0, 0, 100), step("0", 3, 1, 50), step("1", 2, 2, 99), step("2", 2, 50, 99)), 5),
        # An older agent doesn't tell when.
        ((step("batch", 1), step("0", 3), step("1", 2)), 4),
        ((step("batch", 1),), 1),
    ],
)
def test_steps_that_run_side_by_side_use_memory_together(steps: tuple[AccountingStep, ...], gib: float) -> None:
    told = accounting(alloc_tres="cpu=4,mem=16G,node=3", steps=steps)
    job = record(nodes=3, options=JobOptions(nodes=3), starts=(start(usage=USAGE),), accounting=told)
    assert memory_efficiency(job) == gib / 16
    crowded = record(
        nodes=3, options=JobOptions(nodes=3), starts=(start(live=live(peak_rss=12 * GIB)),), accounting=told
    )
    assert memory_efficiency(crowded) == 12 / 16


def test_what_nobody_measured_is_left_out() -> None:
    bare = record(
        job_id=None, nodes=None, node_list=None, alloc_cpus=None, submit_time=None, start_time=None, partition=None
    )
    assert {name.removeprefix("slurmbus/") for name in success_metadata(bare)} == {"key", "site", "state", "end_time"}


@pytest.mark.parametrize(
    ("finished", "good"),
    [
        (record(), True),
        (record(starts=()), True),
        (record(starts=(start(exit_code=3),)), False),
        (record(starts=(start(exit_code=None, signal=9),)), False),
        (record(JobState.FAILED), False),
        (record(starts=(start(exit_code=1), start(number=1, exit_code=0))), True),
    ],
)
def test_success_is_completed_and_exit_code_0(finished: Record, good: bool) -> None:
    assert succeeded(finished) is good


# ------------------------------------------------------------------ failure


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        (
            record(JobState.FAILED, starts=(start(exit_code=3, usage=USAGE),)),
            "Slurm job 17: the payload ended with exit code 3 on c1 after 9.5 s. Its last words: ValueError: no data",
        ),
        (
            record(JobState.COMPLETED, starts=(start(exit_code=3, usage=USAGE),)),
            "Slurm job 17: the payload ended with exit code 3 on c1 after 9.5 s. Its last words: ValueError: no data",
        ),
        (
            record(JobState.FAILED, scheduler="local", starts=(start(exit_code=None, signal=11),)),
            "local job 17: the payload was killed by signal 11 (SIGSEGV) on c1. Its last words: ValueError: no data",
        ),
        (
            record(JobState.FAILED, starts=(start(exit_code=None, signal=9),)),
            (
                "Slurm job 17: the payload was killed by signal 9 (SIGKILL) on c1; signal 9 often means out of memory: "
                "then ask for more with mem=…. Its last words: ValueError: no data"
            ),
        ),
        (
            record(JobState.FAILED, starts=(start(exit_code=127),)),
            (
                "Slurm job 17: exit code 127 on c1: a command wasn't found; check its name and PATH on the site. "
                "Its last words: ValueError: no data"
            ),
        ),
        (
            record(JobState.FAILED, starts=(start(exit_code=None, error="there is no command 'pyhton3'"),)),
            "Slurm job 17: the payload couldn't be started on c1: there is no command 'pyhton3'",
        ),
        (
            record(JobState.FAILED, exit_code=127, error_code="not-started", reason="python3: command not found"),
            "Slurm job 17: the payload couldn't be started on c1: python3: command not found",
        ),
        (
            record(JobState.FAILED, starts=(), slurm_state="FAILED", reason="NonZeroExitCode", node_list=None),
            "Slurm job 17: Slurm says FAILED (NonZeroExitCode). Its last words: ValueError: no data",
        ),
        (
            record(JobState.TIMEOUT, options=JobOptions(time_limit_minutes=2)),
            (
                "Slurm job 17: it reached its time limit of 2 minutes and was ended on c1; ask for more with "
                'time_limit="00:04:00", as far as the partition allows'
            ),
        ),
        (
            record(JobState.TIMEOUT),
            (
                "Slurm job 17: it reached the time limit of its partition and was ended on c1; ask for a longer one "
                'with time_limit="HH:MM:SS", as far as the partition allows'
            ),
        ),
        (
            record(
                JobState.OUT_OF_MEMORY,
                options=JobOptions(mem_per_node_mib=1024),
                accounting=accounting(max_rss=int(1.02 * GIB)),
            ),
            'Slurm job 17: out of memory: asked for 1 GiB, peak 1.02 GiB on c1; ask for more with mem="2G"',
        ),
        (
            record(JobState.OUT_OF_MEMORY, options=JobOptions(mem_per_cpu_mib=100, cpus_per_task=3)),
            'Slurm job 17: out of memory: asked for 300 MiB on c1; ask for more with mem="600M"',
        ),
        (
            record(JobState.OUT_OF_MEMORY, accounting=accounting(alloc_tres="billing=2,cpu=2,mem=2G,node=1")),
            'Slurm job 17: out of memory: asked for 2 GiB, peak 2 GiB on c1; ask for more with mem="4G"',
        ),
        (
            record(JobState.OUT_OF_MEMORY),
            'Slurm job 17: out of memory: asked for no certain amount on c1; ask for more with mem="…"',
        ),
        (
            record(JobState.NODE_FAIL, reason="NodeDown"),
            (
                "Slurm job 17: a node failed while the job ran on c1 (NodeDown); run it again, or let a RetryPolicy or "
                "requeue=True do that"
            ),
        ),
        (record(JobState.BOOT_FAIL), "Slurm job 17: the nodes couldn't be made ready for the job on c1; run it again"),
        (
            record(JobState.PREEMPTED),
            (
                "Slurm job 17: it had to make way for a job of higher priority on c1; run it again, or let a "
                "RetryPolicy or requeue=True do that"
            ),
        ),
        (record(JobState.DEADLINE), "Slurm job 17: it couldn't be finished before its deadline"),
        (
            record(JobState.CANCELLED, cancel=CancelAsked(id=KEY, at=1.0, submitter="bob@login", reason="too loud")),
            "Slurm job 17: it was cancelled by bob@login (too loud)",
        ),
        (
            record(JobState.CANCELLED, accounting=accounting(state="CANCELLED by 1001")),
            "Slurm job 17: user id 1001 cancelled it in Slurm on c1, not through Dagster",
        ),
        (
            record(JobState.CANCELLED),
            "Slurm job 17: somebody cancelled it in Slurm on c1, not through Dagster",
        ),
        (
            record(JobState.REJECTED, job_id=None, reason="Invalid partition: nope", hint="known are main, gpu"),
            "the job: refused: Invalid partition: nope; known are main, gpu",
        ),
        (
            record(JobState.LOST, reason="purged"),
            "Slurm job 17: nobody knows what became of it: purged. Look at its output before you run it again",
        ),
    ],
)
def test_failures_say_what_happened_and_what_to_do(failed: Record, words: str) -> None:
    assert describe(failed, "ValueError: no data") == words


def test_a_missing_file_reminds_of_the_files_that_go_along() -> None:
    failed = record(JobState.FAILED, starts=(start(exit_code=2),))
    words = describe(failed, "can't open file 'x.py': [Errno 2] No such file or directory")
    assert words.endswith("name it in files=[…] or extra_files=[…])")


def test_every_final_state_has_words_and_a_failure() -> None:
    for state in FINAL:
        caught = failure(record(state, starts=(start(exit_code=1),)), Tail())
        assert caught.description
        assert caught.allow_retries is (state in RETRYABLE)
    assert {JobState.NODE_FAIL, JobState.PREEMPTED} <= RETRYABLE
    assert not RETRYABLE & {JobState.OUT_OF_MEMORY, JobState.TIMEOUT, JobState.REJECTED, JobState.CANCELLED}


def test_a_failure_carries_what_is_needed_to_find_the_reason() -> None:
    stderr = Tail()
    stderr.feed(b"".join(b"line %d\n" % number for number in range(200)))
    failed = record(JobState.FAILED, starts=(start(exit_code=None, signal=15, usage=USAGE),), reason="NonZeroExitCode")
    caught = failure(failed, stderr, "Traceback …\nValueError: bad\n")
    assert caught.description is not None
    assert caught.description.endswith("Its last words: ValueError: bad")
    values = {name.removeprefix("slurmbus/"): value.value for name, value in caught.metadata.items()}
    tail = values.pop("stderr_tail")
    assert tail.splitlines() == [f"line {number}" for number in range(150, 200)]
    assert values == {
        "key": KEY,
        "site": "leonardo-alice",
        "job_id": 17,
        "state": "FAILED",
        "reason": "NonZeroExitCode",
        "signal": 15,
        "partition": "main",
        "node_list": "c1",
        "elapsed_seconds": 9.5,
        "peak_memory_bytes": GIB,
        "payload_exception": "Traceback …\nValueError: bad\n",
        "spool": "/home/alice/.slurmbus/jobs/x",
    }


def test_the_tail_is_bounded() -> None:
    tail = Tail()
    tail.feed(b"\r50 %" * 1_000_000)
    tail.feed(b"\n" + "é".encode()[1:] + b"last\n\n")
    assert tail.last_line == "\ufffdlast"
    assert len(tail.text) < 100_000
    assert len(tail.text.splitlines()) <= TAIL_LINES
    assert Tail().last_line == ""


def test_errors_on_the_way_keep_their_hint_and_say_whether_to_retry() -> None:
    away = from_error(BusUnreachable("no connection"))
    assert away.allow_retries
    assert away.description == "no connection (check that the NATS server runs and that its address is right)"
    assert not from_error(NotAllowed("no")).allow_retries


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (17, "17 bytes"),
        (GIB, "1 GiB"),
        (int(1.02 * GIB), "1.02 GiB"),
        (100 * 1024**2, "100 MiB"),
        (5 * 1024**4, "5 TiB"),
    ],
)
def test_sizes_are_written_for_people(number: int, words: str) -> None:
    assert size(number) == words
