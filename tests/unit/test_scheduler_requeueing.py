"""Which job may be requeued, and what scontrol's words mean."""

from __future__ import annotations

import pytest

from slurmbus_agent.scheduler import requeueing
from slurmbus_agent.scheduler.base import Observation, OutcomeUnknown, Refused, SchedulerError, Unavailable
from slurmbus_agent.scheduler.command import Ended


def ended(stderr: str = "", code: int | None = 1, trouble: str = "") -> Ended:
    return Ended("scontrol", code, "", stderr, 0.1, trouble)


def seen(state: str, *flags: str, name: str = "job") -> Observation:
    return Observation(job_id=7, name=name, state=state, flags=flags)


def test_one_job_or_one_task_is_named() -> None:
    assert (requeueing.task_of("job"), requeueing.task_of("job[3]")) == (None, 3)
    assert (requeueing.word(12, None), requeueing.word(12, 3)) == ("12", "12_3")


def test_only_a_running_job_of_this_name_is_meant() -> None:
    assert requeueing.is_meant(seen("RUNNING"), "job")
    assert requeueing.is_meant(seen("SUSPENDED"), "job")
    assert not requeueing.is_meant(seen("RUNNING", name="foreign"), "job")
    assert not requeueing.is_meant(seen("COMPLETED", name="foreign"), "job")
    assert not requeueing.is_meant(None, "job")
    for other in (seen("PENDING"), seen("COMPLETED"), seen("RUNNING", "COMPLETING"), seen("TIMEOUT", "COMPLETING")):
        with pytest.raises(Refused, match=other.state):
            requeueing.is_meant(other, "job")


def test_what_was_done() -> None:
    assert requeueing.done(ended(code=0))
    assert not requeueing.done(ended("Invalid job id specified for job 12\n"))
    assert not requeueing.done(ended("12_3: Invalid job id specified\n"))


@pytest.mark.parametrize(
    ("stderr", "trouble", "error"),
    [
        ("Requested operation is presently disabled for job 12\n", "", Refused),
        ("12_3: Requested operation is presently disabled\n", "", Refused),
        ("Access/permission denied for job 12\n", "", Refused),
        ("Unable to contact slurm controller (connect failure) for job 12\n", "", Unavailable),
        ("Socket timed out on send/recv operation for job 12\n", "", OutcomeUnknown),
        ("Unable to contact slurm controller (send failure) for job 12\n", "", OutcomeUnknown),
        ("something else\n", "", OutcomeUnknown),
        ("", "", OutcomeUnknown),
        ("Access/permission denied for job 12\n", "was killed after 18 s", OutcomeUnknown),
    ],
)
def test_every_failure_says_whether_it_may_have_been_done(
    stderr: str, trouble: str, error: type[SchedulerError]
) -> None:
    with pytest.raises(error):
        requeueing.done(ended(stderr, None if trouble else 1, trouble))
