"""Arrays that were refused as a whole, or whose step asks for something else when it is run again.

A real bus and real Dagster, and an agent that plays what Slurm would say.
"""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
from typing import Any

import dagster as dg
import pytest

from contract.scripted_jobs import SITE, DagsterSite, ScriptedJob, failure_of, handles_of, tasks_of
from dagster_slurmbus import CompletedArray, PipesSlurmClient
from slurmbus.client import SiteClient
from slurmbus_protocol.states import JobState


async def refuse(array: ScriptedJob) -> None:
    """As an agent does: one record for all tasks, that of a single job."""
    await array.state(
        JobState.REJECTED, reason="max_jobs: 3 are more than 2", error_code="policy", hint="wait for some"
    )


async def complete(array: ScriptedJob) -> None:
    for task in tasks_of(array):
        await task.begin()
        await task.end()


def killed(*_args: Any, **_more: Any) -> None:
    raise RuntimeError("between the launch handle and the request")


def asked(site: DagsterSite) -> list[str]:
    """Give the tasks of each array."""
    return ["".join(task.name for task in job.spec.tasks) for job in site.jobs]


@pytest.mark.parametrize("only", [None, ["b"]])
def test_an_array_that_is_refused_fails_the_step_in_the_agents_words(
    slurm: DagsterSite, instance: dg.DagsterInstance, only: list[str] | None
) -> None:
    slurm.script = refuse

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def thing(context: dg.AssetExecutionContext) -> Any:
        return slurm.client.run_array(
            context=context, command="true", tasks=["a", "b", "c"], only=only
        ).get_materialize_result()

    text, metadata = failure_of(dg.materialize([thing], instance=instance, raise_on_error=False))
    count = len(only or "abc")
    assert f"{count} of {count} tasks failed" in text
    assert "[b] the job: refused: max_jobs: 3 are more than 2; wait for some" in text
    assert [row.data["task"] for row in metadata["failed_tasks"].records] == (only or ["a", "b", "c"])
    assert len(slurm.jobs) == 1


@pytest.mark.parametrize("only", [None, ["b"]])
def test_a_launch_that_was_never_published_is_ended_when_the_step_asks_for_something_else(
    slurm: DagsterSite, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, only: list[str] | None
) -> None:
    slurm.script = complete

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def thing(context: dg.AssetExecutionContext) -> Any:
        with monkeypatch.context() as patch:
            if not context.retry_number:
                patch.setattr(SiteClient, "submit", killed)
            done = slurm.client.run_array(
                context=context, command=["true", str(context.retry_number)], tasks=["a", "b", "c"], only=only
            )
        return done.get_materialize_result()

    assert dg.materialize([thing], instance=instance, raise_on_error=False).success
    assert asked(slurm) == ["".join(only or "abc")]


@pytest.mark.parametrize(
    ("on_changed", "call", "arrays"),
    [("resubmit", {"only": ["b"]}, ["abc", "b", "ac"]), ("reattach", {"tasks": [*"abcd"]}, ["abc", "d", "abc"])],
)
def test_tasks_of_other_code_that_a_call_left_out_or_followed_count_as_changed_later(
    slurm: DagsterSite, instance: dg.DagsterInstance, on_changed: str, call: dict[str, Any], arrays: list[str]
) -> None:
    slurm.script = complete
    calls: list[dict[str, Any]] = [{"command": ["first"]}, {"command": ["other"], **call}, {"command": ["other"]}]
    clients = [PipesSlurmClient(site=SITE, bus=slurm.bus, on_changed_request=on_changed), slurm.client]
    seen: list[CompletedArray] = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
    def thing(context: dg.AssetExecutionContext) -> Any:
        number = context.retry_number
        client = clients[number == 2]
        seen.append(client.run_array(**{"context": context, "tasks": [*"abc"], **calls[number]}))
        if number < 2:
            raise RuntimeError("the step ends after its array has")
        return seen[-1].get_materialize_result()

    assert dg.materialize([thing], instance=instance, raise_on_error=False).success
    assert asked(slurm) == arrays
    assert [task.name for task in seen[-1] if not task.reattached] == [*arrays[-1]]


def test_tasks_behind_one_that_came_or_went_keep_their_results(
    slurm: DagsterSite, instance: dg.DagsterInstance
) -> None:
    slurm.script = complete
    tasks = [["a", "b", "c"], ["new", "a", "b", "c"], ["b", "new", "c"]]
    seen: list[CompletedArray] = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
    def thing(context: dg.AssetExecutionContext) -> Any:
        number = context.retry_number
        seen.append(slurm.client.run_array(context=context, command="true", tasks=tasks[number]))
        if number < 2:
            raise RuntimeError("the step ends after its array has")
        return seen[-1].get_materialize_result()

    assert dg.materialize([thing], instance=instance, raise_on_error=False).success
    assert asked(slurm) == ["abc", "new"]
    assert [(task.index, task.name, task.record.task) for task in seen[-1]] == [(0, "b", 1), (1, "new", 0), (2, "c", 2)]


def test_a_request_with_other_numbers_isnt_published_again_under_the_same_key(
    slurm: DagsterSite, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.script = complete
    tasks = [["a", "b"], ["new", "a", "b"]]

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def thing(context: dg.AssetExecutionContext) -> Any:
        with monkeypatch.context() as patch:
            if not context.retry_number:
                patch.setattr(SiteClient, "submit", killed)
            done = slurm.client.run_array(context=context, command="true", tasks=tasks[context.retry_number])
        return done.get_materialize_result()

    result = dg.materialize([thing], instance=instance, raise_on_error=False)
    assert result.success
    first, second = [handle.external_run_id for handle in handles_of(instance, result.run_id)]
    assert first != second
    assert [(job.submit.key, [task.index for task in job.spec.tasks]) for job in slurm.jobs] == [(second, [0, 1, 2])]
