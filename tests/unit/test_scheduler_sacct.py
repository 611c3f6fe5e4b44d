"""What sacct prints, as it printed it, and in the forms that sacct(1) documents."""

from __future__ import annotations

import pytest

from slurmbus_agent.scheduler import sacct
from slurmbus_agent.scheduler.base import ANY_ID
from slurmbus_protocol.messages import AccountingStep, Used

# Of Slurm 26.05.5: two tasks on two nodes, a step that failed, and the batch script's own work.
REAL = """\
1|train.01JD|COMPLETED|0:0|6|00:05.309||2|4|billing=4,cpu=4,gres/gpu=2,mem=2000M,node=2|||||0|c[1-2]|1795388904|1795388904|1795388910
1.batch|batch|COMPLETED|0:0|6|00:00.913|1|1|2|cpu=2,gres/gpu=1,mem=1000M,node=1|cpu=00:00:00,energy=0,fs/disk=104593,mem=14807040,pages=0,vmem=785629184|cpu=00:00:00,energy=0,fs/disk=104593,mem=14807040,pages=1,vmem=785629184|cpu=00:00:00,energy=0,fs/disk=104593,mem=14807040,pages=0,vmem=785629184|energy=0,fs/disk=17356|0|c1|1795388904|1795388904|1795388910
1.0|python3|COMPLETED|0:0|5|00:04.393|2|2|4|cpu=4,gres/gpu=2,mem=2000M,node=2|cpu=00:00:03,energy=0,fs/disk=86164,mem=438812672,pages=1,vmem=1109213184|cpu=00:00:02,energy=0,fs/disk=43082,mem=219426816,pages=1,vmem=554606592|cpu=00:00:01,energy=0,fs/disk=43082,mem=219406336,pages=0,vmem=554606592|energy=0,fs/disk=419430402|0|c[1-2]|1795388904|1795388904|1795388909
1.1|false|FAILED|1:0|0|00:00.002|1|1|2|cpu=2,gres/gpu=1,mem=1000M,node=1|cpu=00:00:00,energy=0,fs/disk=0,mem=3784704,pages=0,vmem=554606592|cpu=00:00:00,energy=0,fs/disk=0,mem=3784704,pages=0,vmem=554606592|cpu=00:00:00,energy=0,fs/disk=0,mem=3784704,pages=0,vmem=554606592|energy=0,fs/disk=1|0|c1|1795388909|1795388909|1795388909
"""
JOB = "{id}|x.01JD|{state}|0:0|10|{cpu}||1|2|cpu=2,gres/gpu:a100=2|||||{energy}|c1|1000|1001|{end}\n"
STEP = "{id}.{step}|x|{state}|0:0|{elapsed}|00:01|1|1|2||{total}|{most}|{mean}||{energy}|c1|1000|1001|1011\n"


def printed(text: str) -> str:
    """Make it what sacct prints: with its delimiter, and the job's id once more at the end."""
    lines = (f"{line}|{line.partition('|')[0]}" if line.count("|") == 18 else line for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines).replace("|", "\x1f")


def job(**fields: object) -> str:
    return JOB.format(**{"id": 7, "state": "COMPLETED", "cpu": "00:01", "energy": "0", "end": "1011"} | fields)


def step(number: object = 0, **fields: object) -> str:
    base = {"id": 7, "step": number, "state": "COMPLETED", "elapsed": 1, "total": "", "most": "", "mean": ""}
    return STEP.format(**base | {"energy": "0"} | fields)


def test_a_real_job_with_its_steps() -> None:
    [row] = sacct.rows(printed(REAL))
    assert (row.job_id, row.name, row.final, row.node_list) == (1, "train.01JD", True, "c[1-2]")
    assert (row.submit_time, row.start_time, row.end_time) == (1795388904.0, 1795388904.0, 1795388910.0)
    accounting = row.accounting
    assert (accounting.state, accounting.elapsed, accounting.cpu_seconds) == ("COMPLETED", 6.0, 5.309)
    assert (accounting.alloc_cpus, accounting.alloc_nodes) == (4, 2)
    assert accounting.alloc_tres == "billing=4,cpu=4,gres/gpu=2,mem=2000M,node=2"
    assert accounting.max_rss == 219426816
    assert accounting.used == Used(disk_read=104593 + 86164, disk_written=17356 + 419430402 + 1)
    assert accounting.steps_in_all == 3
    assert [found.step for found in accounting.steps] == ["batch", "0", "1"]
    assert accounting.steps[1] == AccountingStep(
        step="0",
        name="python3",
        state="COMPLETED",
        elapsed=5.0,
        tasks=2,
        nodes=2,
        alloc_cpus=4,
        cpu_seconds=4.393,
        max_rss=219426816,
        ave_rss=219406336,
        disk_read=86164,
        disk_written=419430402,
        start_time=1795388904.0,
        end_time=1795388909.0,
    )
    assert (accounting.steps[2].state, accounting.steps[2].exit_code) == ("FAILED", 1)


def test_gpus_and_energy_where_the_cluster_records_them() -> None:
    """As sacct(1) and slurm.conf(5), AccountingStorageTRES, say: gres/gpumem in bytes, gres/gpuutil in percent."""
    text = job(energy="36000")
    text += step(0, elapsed=30, energy="30000", most="gres/gpumem=2G,gres/gpuutil=90", mean="gres/gpuutil=80")
    text += step(1, elapsed=10, energy="6000", most="gres/gpumem=1073741824", mean="gres/gpumem=1G,gres/gpuutil=40")
    text += step(2, elapsed=99)
    [row] = sacct.rows(printed(text))
    assert row.accounting.used == Used(energy_joules=36000.0, gpu_memory=2 * 1024**3, gpu_percent=70.0)
    assert [found.energy_joules for found in row.accounting.steps] == [30000.0, 6000.0, None]
    assert [found.gpu_percent for found in row.accounting.steps] == [80.0, 40.0, None]


@pytest.mark.parametrize("nothing", ["", "0", "18446744073709551614"])
def test_energy_that_nobody_measured_is_none(nothing: str) -> None:
    [row] = sacct.rows(printed(job(energy=nothing)))
    assert row.accounting.used is None


@pytest.mark.parametrize(
    ("state", "end", "final", "word", "by"),
    [
        ("COMPLETED", "1011", True, "COMPLETED", ""),
        ("CANCELLED by 1001", "1011", True, "CANCELLED", "1001"),
        ("RUNNING", "Unknown", False, "RUNNING", ""),
        ("REQUEUED", "1011", False, "REQUEUED", ""),
        ("OUT_OF_MEMORY", "1011", True, "OUT_OF_MEMORY", ""),
    ],
)
def test_states(state: str, end: str, final: bool, word: str, by: str) -> None:
    [row] = sacct.rows(printed(job(state=state, end=end)))
    assert (row.final, row.accounting.state, row.accounting.cancelled_by) == (final, word, by)


def test_a_job_of_a_thousand_steps_keeps_those_that_tell_most() -> None:
    text = job() + step("batch", state="FAILED")
    text += "".join(step(number, state="FAILED" if number in {500, 900} else "COMPLETED") for number in range(1000))
    [row] = sacct.rows(printed(text))
    kept = [found.step for found in row.accounting.steps]
    assert kept == ["batch", *map(str, range(47)), "500", "900"]
    assert row.accounting.steps_in_all == 1001


def test_several_jobs_and_a_name_with_a_line_break() -> None:
    text = job() + step(0) + "7.1|half\na name|COMPLETED\n" + job(id=8, state="FAILED") + step(0, id=8, state="FAILED")
    rows = sacct.rows(printed(text))
    assert [(row.job_id, [found.state for found in row.accounting.steps]) for row in rows] == [
        (7, ["COMPLETED"]),
        (8, ["FAILED"]),
    ]
    assert sacct.rows("") == []


def test_the_question_names_ids_and_names() -> None:
    asked = sacct.arguments([(2, "b"), (1, "a")], 1000.0)
    assert "--jobs=1,2" in asked
    assert "--name=a,b" in asked
    assert not any(word.startswith("--jobs") for word in sacct.arguments([(ANY_ID, "a")], 1000.0))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:05.309", 5.309), ("1-02:03:04", 93784.0), ("02:03:04", 7384.0), ("00:00:00", 0.0), ("", 0.0), ("x", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert sacct.duration(text) == pytest.approx(seconds)


def test_trackable_resources() -> None:
    text = "billing=4,cpu=00:01:02,mem=2000M,gres/gpu:a100=2,fs/disk=1.50K,energy=x,"
    assert sacct.tres(text) == {
        "billing": 4.0,
        "cpu": 62.0,
        "mem": 2000.0 * 1024**2,
        "gres/gpu:a100": 2.0,
        "fs/disk": 1536.0,
    }


def test_tasks_of_an_array_come_one_by_one() -> None:
    text = "".join(
        f"{job(id=own).rstrip()}|{shown}\n".replace("|", "\x1f") for own, shown in ((16, "16_[5-6%2]"), (17, "16_3"))
    )
    rows = sacct.rows(text)
    assert [(row.job_id, row.name) for row in rows] == [(16, "x.01JD[5]"), (16, "x.01JD[6]"), (16, "x.01JD[3]")]
    asked = sacct.arguments([(16, "x.01JD[3]"), (16, "x.01JD[5]")], 1000.0)
    assert {"--name=x.01JD", "--jobs=16"} <= set(asked)


def test_only_sacct_prints_the_titles() -> None:
    titles = "\x1f".join(sacct._FIELDS)
    assert sacct.body(f"a banner\n{titles}\nrow\n") == "row\n"
    assert sacct.body("a banner\n") is None
