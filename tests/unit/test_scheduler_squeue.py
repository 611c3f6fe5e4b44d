"""What squeue prints: other jobs' names, wrappers' lines, half a list."""

from __future__ import annotations

import pytest

from slurmbus_agent.scheduler.base import Unavailable
from slurmbus_agent.scheduler.squeue import arguments, new_mark, observations

MARK = "@0f0f0f@"
TITLES = [
    "JOBID",
    "ARRAY_JOB_ID",
    "ARRAY_TASK_ID",
    "NAME",
    "STATE",
    "EXIT_CODE",
    "REASON",
    "PARTITION",
    "NODES",
    "NODELIST",
    "CPUS",
    "SUBMIT_TIME",
    "START_TIME",
    "END_TIME",
    "RESTARTCNT",
]
ROW = {
    "JOBID": "12",
    "ARRAY_JOB_ID": "12",
    "ARRAY_TASK_ID": "N/A",
    "NAME": "ours",
    "STATE": "RUNNING",
    "EXIT_CODE": "0:0",
    "REASON": "None",
    "PARTITION": "main",
    "NODES": "1",
    "NODELIST": "c1",
    "CPUS": "2",
    "SUBMIT_TIME": "1000",
    "START_TIME": "1001",
    "END_TIME": "2000",
    "RESTARTCNT": "0",
}


def line(**changes: str) -> str:
    row = ROW | changes
    return "".join(f"{row[title]}{MARK}" for title in TITLES) + "\n"


HEAD = "".join(f"{title}{MARK}" for title in TITLES) + "\n"


def one(**changes: str):  # noqa: ANN201
    (found,) = observations(HEAD + line(**changes), MARK)
    return found


def test_a_running_job() -> None:
    seen = one()
    assert (seen.job_id, seen.name, seen.state, seen.flags, seen.reason) == (12, "ours", "RUNNING", (), None)
    assert (seen.submit_time, seen.start_time, seen.end_time) == (1000, 1001, None)
    assert (seen.exit_code, seen.signal, seen.alloc_cpus, seen.nodes, seen.node_list) == (None, None, 2, 1, "c1")


def test_a_pending_job_has_a_guess_of_its_start() -> None:
    seen = one(STATE="PENDING", REASON="Priority", NODELIST="", START_TIME="5000")
    assert (seen.reason, seen.start_time, seen.start_estimate, seen.node_list) == ("Priority", None, 5000, None)
    assert one(STATE="PENDING", START_TIME="N/A").start_estimate is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3:0", (3, 0)),
        ("255:0", (255, 0)),
        ("0:9", (0, 9)),
        ("768", (3, 0)),
        ("65280", (255, 0)),
        ("9", (0, 9)),
        ("139", (0, 11)),
        ("", (None, None)),
        ("x", (None, None)),
    ],
)
def test_exit_codes_of_new_and_old_versions(text: str, found: tuple[int | None, int | None]) -> None:
    seen = one(STATE="FAILED", EXIT_CODE=text)
    assert (seen.exit_code, seen.signal, seen.end_time) == (*found, 2000)


@pytest.mark.parametrize(
    ("word", "state"), [("COMPLETING", "RUNNING"), ("REQUEUE_HOLD", "PENDING"), ("CONFIGURING", "RUNNING")]
)
def test_a_flag_hides_the_state_below_and_is_never_final(word: str, state: str) -> None:
    seen = one(STATE=word, EXIT_CODE="1:0")
    assert (seen.state, seen.flags, seen.exit_code) == (state, (word,), None)


@pytest.mark.parametrize("name", ["two\nlines", "a|b,c\x1f\x1e", "", " ", "JOBID", "�", "@0f0f0f"])
def test_names_of_other_jobs(name: str) -> None:
    seen = observations(HEAD + line(NAME=name, JOBID="11") + line(), MARK)
    assert [job.job_id for job in seen] == [11, 12]
    assert seen[1].name == "ours"


def test_lines_of_a_wrapper_before_and_after() -> None:
    text = f"*** maintenance on Monday ***\n{HEAD}{line()}bye\n"
    assert [job.name for job in observations(text, MARK)] == ["ours"]


def test_no_jobs() -> None:
    assert observations(HEAD, MARK) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "maintenance\n",
        line(),
        (HEAD + line())[:-30],
        HEAD.replace("JOBID", "ID"),
        (HEAD + line()).replace(MARK, "@ffffff@"),
    ],
)
def test_anything_else_is_no_answer(text: str) -> None:
    with pytest.raises(Unavailable, match="something else than a list of jobs"):
        observations(text, MARK)


def test_tasks_of_an_array_come_one_by_one() -> None:
    text = (
        HEAD
        + line(JOBID="16", ARRAY_JOB_ID="16", ARRAY_TASK_ID="5-7,9%2", STATE="PENDING")
        + line(JOBID="17", ARRAY_JOB_ID="16", ARRAY_TASK_ID="3")
        + line(JOBID="18", ARRAY_JOB_ID="18", ARRAY_TASK_ID="1,3,...", STATE="PENDING", NAME="of-others")
    )
    seen = observations(text, MARK)
    assert [(job.job_id, job.name, job.task_job_id) for job in seen] == [
        (16, "ours[5]", None),
        (16, "ours[6]", None),
        (16, "ours[7]", None),
        (16, "ours[9]", None),
        (16, "ours[3]", 17),
    ]


def test_nobody_can_foresee_the_mark() -> None:
    assert new_mark() != new_mark()
    assert all(new_mark() not in part for part in arguments(MARK))
    assert "," not in new_mark()
