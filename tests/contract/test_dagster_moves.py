"""Steps that are to run on another site when they are run again: arrays, and single jobs.

A real bus and real Dagster, and an agent for each site that plays what Slurm would say.
"""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pytest

from contract.bus_site import bus_site, wait_until
from contract.scripted_jobs import DagsterSite, ScriptedJob, failure_of, log_of, tasks_of
from dagster_slurmbus import CompletedArray, MoreMemory, PipesSlurmClient
from dagster_slurmbus.array_watching import ArrayWatching
from dagster_slurmbus.watching import Watching
from slurmbus.home import Home
from slurmbus_protocol.states import JobState

COMPLETED, FAILED, RUNNING = JobState.COMPLETED, JobState.FAILED, JobState.RUNNING
RESUBMIT, REATTACH, FAIL = "resubmit", "reattach", "fail"


@pytest.fixture(scope="module")
def scripted_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with two sites on its bus."""
    with bus_site(tmp_path_factory.mktemp("moves"), further=("elsewhere",)) as running:
        yield running.home


@pytest.fixture
def other(scripted_home: Home) -> Iterator[DagsterSite]:
    """The second site."""
    site = DagsterSite(scripted_home, "elsewhere")
    with site.running():
        yield site
    assert site.errors == []


@dataclass
class Tasks:
    """What becomes of the tasks of arrays: those that run do so until they may end or are cancelled."""

    states: dict[str, JobState]
    at_last: JobState = JobState.CANCELLED
    settled: threading.Event = field(default_factory=threading.Event)
    ended: list[str] = field(default_factory=list)

    async def __call__(self, array: ScriptedJob) -> None:
        tasks = {str(task.fields["task_name"]): task for task in tasks_of(array)}
        for name, task in tasks.items():
            await task.begin()
            state = self.states.get(name, COMPLETED)
            if state is not RUNNING:
                await task.end(state, exit_code=0 if state is COMPLETED else 3)
        self.settled.set()
        for name, task in tasks.items():
            if self.states.get(name) is RUNNING:
                await array.cancelled.wait()
                success = self.at_last is COMPLETED
                await task.end(self.at_last, exit_code=0 if success else None, signal=None if success else 15)
                self.ended.append(name)


@dataclass
class Moving:
    """A step whose first attempt is left on one site, and whose second is to run on the other."""

    here: DagsterSite
    there: DagsterSite
    instance: dg.DagsterInstance
    monkeypatch: pytest.MonkeyPatch
    at_last: JobState = JobState.CANCELLED
    """What becomes of those that run when the second attempt has come."""
    done: list[CompletedArray] = field(default_factory=list)

    def run(
        self, states: dict[str, JobState], on_changed: str, tasks: str = "abc", **more: Any
    ) -> dg.ExecuteInProcessResult:
        """Run it; the states are those of the first attempt's tasks a, b and c when it is left."""
        self.first, self.second = Tasks(states, self.at_last), Tasks({})
        self.here.script, self.there.script = self.first, self.second
        settled, follow = self.first.settled, ArrayWatching.follow

        def go_on(watching: ArrayWatching, submit: Callable[[], object]) -> None:
            self.here.do(self.here.jobs[0].cancelled.set)
            follow(watching, submit)

        def leave(watching: ArrayWatching, submit: Callable[[], object]) -> None:
            with watching._handlers:
                submit()
                assert settled.wait(30)
                raise RuntimeError("the step is gone, and its array goes on")

        @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
        def thing(context: dg.AssetExecutionContext) -> Any:
            again = context.retry_number > 0
            site, partition = (self.there, "theirs") if again else (self.here, "ours")
            client = PipesSlurmClient(site=site.site, bus=site.bus, on_changed_request=on_changed)
            with self.monkeypatch.context() as patch:
                patch.setattr(ArrayWatching, "follow", go_on if again else leave)
                done = client.run_array(
                    context=context,
                    command="true",
                    tasks=[*(tasks if again else "abc")],
                    options={"partition": partition},
                    **more,
                )
            self.done.append(done)
            return done.get_materialize_result()

        return dg.materialize([thing], instance=self.instance, raise_on_error=False)


@pytest.fixture
def moving(
    slurm: DagsterSite, other: DagsterSite, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Moving:
    """The step, and its two sites."""
    return Moving(slurm, other, instance, monkeypatch)


def asked(site: DagsterSite) -> list[tuple[str, str | None]]:
    """Give the tasks of each array, and the partition that it asks for."""
    return [("".join(task.name for task in job.spec.tasks), job.spec.options.partition) for job in site.jobs]


def test_an_array_is_ended_on_its_site_before_all_of_it_is_submitted_on_the_other(moving: Moving) -> None:
    result = moving.run({"a": COMPLETED, "b": FAILED, "c": RUNNING}, RESUBMIT)
    assert result.success
    assert asked(moving.here) == [("abc", "ours")]
    assert asked(moving.there) == [("abc", "theirs")]
    assert moving.first.ended == ["c"]
    (done,) = moving.done
    assert {(task.state, task.record.site, task.reattached) for task in done} == {("COMPLETED", "elsewhere", False)}
    told = "the request has changed (site): 1 tasks on site scripted are cancelled, and all are submitted on elsewhere"
    assert told in log_of(moving.instance, result.run_id)


def test_an_array_of_which_all_has_failed_goes_to_the_other_site(moving: Moving) -> None:
    assert moving.run(dict.fromkeys("abc", FAILED), FAIL).success
    assert (asked(moving.here), asked(moving.there)) == ([("abc", "ours")], [("abc", "theirs")])


@pytest.mark.parametrize(
    ("on_changed", "states", "tasks", "count"),
    [
        (FAIL, {"a": COMPLETED, "b": FAILED, "c": FAILED}, "abc", "1 of 3"),
        (REATTACH, {"a": COMPLETED, "b": COMPLETED, "c": FAILED}, "abc", "2 of 3"),
        (REATTACH, {}, "abcd", "3 of 4"),
    ],
)
def test_a_person_decides_about_an_array_that_can_only_go_on_in_part(
    moving: Moving, on_changed: str, states: dict[str, JobState], tasks: str, count: str
) -> None:
    text, _ = failure_of(moving.run(states, on_changed, tasks))
    assert text.startswith(f"{count} tasks run or have completed on site scripted, and this step asks for elsewhere")
    assert f"on_changed_request='{on_changed}'" in text
    assert (asked(moving.here), asked(moving.there)) == ([("abc", "ours")], [])


@pytest.mark.parametrize(("at_last", "success"), [(COMPLETED, True), (JobState.OUT_OF_MEMORY, False)])
def test_an_array_is_followed_on_its_site_and_nothing_more_is_submitted_there(
    moving: Moving, at_last: JobState, *, success: bool
) -> None:
    moving.at_last = at_last
    result = moving.run({"c": RUNNING}, REATTACH, on_out_of_memory=MoreMemory(), on_task_failure="continue")
    assert result.success
    (done,) = moving.done
    assert {(task.record.site, task.reattached) for task in done} == {("scripted", True)}
    assert [task.succeeded for task in done] == [True, True, success]
    assert (asked(moving.here), asked(moving.there)) == ([("abc", "ours")], [])
    told = (
        "an earlier attempt's tasks went to site scripted: they are followed there, and none is submitted on elsewhere"
    )
    assert told in log_of(moving.instance, result.run_id)


@pytest.mark.parametrize("on_changed", [RESUBMIT, REATTACH])
def test_a_single_job_is_ended_on_its_site_or_followed_there(
    slurm: DagsterSite,
    other: DagsterSite,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    on_changed: str,
) -> None:
    ended: list[JobState] = []

    async def run_until_cancelled(job: ScriptedJob) -> None:
        await job.begin()
        await job.cancelled.wait()
        ended.append(JobState.CANCELLED if job.cancel else COMPLETED)
        await job.end(ended[0])

    def leave(_watching: Watching, submit: Callable[[], object]) -> None:
        submit()
        wait_until(lambda: slurm.jobs and slurm.jobs[0].starts, "the job to run")
        raise RuntimeError("the step is gone, and its job goes on")

    slurm.script = run_until_cancelled

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def thing(context: dg.AssetExecutionContext) -> Any:
        site = other if context.retry_number else slurm
        client = PipesSlurmClient(site=site.site, bus=site.bus, on_changed_request=on_changed)
        with monkeypatch.context() as patch:
            if not context.retry_number:
                patch.setattr(Watching, "follow", leave)
            elif on_changed == REATTACH:
                slurm.do(slurm.jobs[0].cancelled.set)
            return client.run(context=context, command="true").get_materialize_result()

    assert dg.materialize([thing], instance=instance, raise_on_error=False).success
    assert ended == [JobState.CANCELLED if on_changed == RESUBMIT else COMPLETED]
    assert (len(slurm.jobs), len(other.jobs)) == (1, 1 if on_changed == RESUBMIT else 0)
