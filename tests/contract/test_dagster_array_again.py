"""Tasks of arrays that ran out of memory or time: again with more of it under a policy, else left as they are.

A real bus and real Dagster, and an agent that plays what Slurm would say.
"""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
from typing import Any

import dagster as dg

from contract.scripted_jobs import DagsterSite, Script, ScriptedJob, failure_of, log_of, tasks_of
from dagster_slurmbus import CompletedArray, FinishedJob, MoreMemory, MoreTime
from slurmbus_protocol.states import JobState

COMPLETED, FAILED = JobState.COMPLETED, JobState.FAILED
OUT_OF_MEMORY, TIMEOUT = JobState.OUT_OF_MEMORY, JobState.TIMEOUT
OPTIONS = {"mem": "1G", "time_limit": 1}


def ends(**states: list[JobState]) -> Script:
    """How each task ends in its first job, its second, and so on; each reports which one it was."""
    left = {name: list(enumerate(all_, 1)) for name, all_ in states.items()}

    async def script(array: ScriptedJob) -> None:
        for task in tasks_of(array):
            number, state = left[task.fields["task_name"]].pop(0)
            await task.begin()
            await task.pipes("opened", extras={})
            await task.materialize("thing", attempt=number)
            await task.pipes("closed")
            code = {COMPLETED: 0, FAILED: 3}.get(state)
            await task.end(state, exit_code=code, signal=None if code is not None else 9, slurm_state=state.value)

    return script


def asked(site: DagsterSite) -> list[tuple[str, int | None, int | None]]:
    """Give the tasks of each array, with the memory and the time that they ask for."""
    options = [(job.spec.tasks, job.spec.options) for job in site.jobs]
    return [
        ("".join(task.name for task in tasks), one.mem_per_node_mib, one.time_limit_minutes) for tasks, one in options
    ]


def test_tasks_that_lack_memory_or_time_go_on_together_with_more(
    slurm: DagsterSite, instance: dg.DagsterInstance
) -> None:
    slurm.script = ends(
        a=[COMPLETED],
        b=[OUT_OF_MEMORY, COMPLETED],
        c=[TIMEOUT, OUT_OF_MEMORY, COMPLETED],
        d=[OUT_OF_MEMORY, OUT_OF_MEMORY],
        e=[FAILED, FAILED],
    )
    seen: list[CompletedArray] = []

    def own(job: FinishedJob) -> dict[str, Any]:
        if job.record.task_name == "a":
            raise RuntimeError("no price list")
        return {"euros": 0.02 * float(str(job.metadata["slurmbus/core_hours"].value)), "job": job.record.task_name}

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def thing(context: dg.AssetExecutionContext) -> Any:
        done = slurm.client.run_array(
            context=context,
            command="true",
            tasks=["a", "b", "c", "d", "e"],
            options=OPTIONS,
            on_task_failure="continue",
            on_out_of_memory=MoreMemory(factor=2, attempts=1),
            on_timeout=MoreTime(factor=3),
            metrics=own,
        )
        seen.append(done)
        if context.retry_number == 0:
            raise RuntimeError("the step ends after its array has")
        return done.get_materialize_result()

    result = dg.materialize([thing], instance=instance, raise_on_error=False)
    assert result.success, failure_of(result)
    assert asked(slurm) == [
        ("abcde", 1024, 1),
        ("bd", 2048, 1),
        ("c", 1024, 3),
        ("c", 2048, 3),
        # The retry keeps all but what may end in another way.
        ("e", 1024, 1),
    ]
    before, after = seen
    for done in seen:
        assert {task.name: (task.state, task.attempts) for task in done if task.name != "e"} == {
            "a": ("COMPLETED", 1),
            "b": ("COMPLETED", 2),
            "c": ("COMPLETED", 3),
            "d": ("OUT_OF_MEMORY", 2),
        }
        assert [task.index for task in done] == [0, 1, 2, 3, 4]
        # What the jobs that failed had reported doesn't count.
        assert [r.metadata["attempt"].value for t in done.succeeded for r in t.results if r.metadata][:3] == [1, 2, 3]
    assert before["d"].describe().endswith("It was the last of 2 attempts")
    assert before["d"].metadata["slurmbus/state"].value == "OUT_OF_MEMORY"
    assert after["d"].reattached
    lines = log_of(instance, result.run_id)
    assert "2 tasks had too little memory or time. Running them again with mem=2048M instead of 1024M: b, d" in lines
    assert "1 tasks had too little memory or time. Running them again with mem=2048M instead of 1024M: c" in lines
    assert "not running 1 failed tasks again as they are: d" in lines
    assert [line for line in lines if line.startswith("[a] metrics= raised RuntimeError: no price list")]
    (materialization,) = result.asset_materializations_for_node("thing")
    shown = {name.removeprefix("slurmbus/"): value.value for name, value in materialization.metadata.items()}
    assert shown["job"] == {"b": "b", "c": "c"}
    assert set(shown["euros"]) == {"b", "c"}
    assert (shown["tasks_failed"], shown["tasks_given_more"], shown["cpu_efficiency"]) == (2, 3, 0.25)


def test_a_retry_runs_again_what_may_end_in_another_way(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    slurm.script = ends(
        a=[COMPLETED],
        b=[OUT_OF_MEMORY, OUT_OF_MEMORY],
        c=[OUT_OF_MEMORY, FAILED, COMPLETED],
        d=[JobState.NODE_FAIL, COMPLETED],
        e=[TIMEOUT],
    )

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=3))
    def thing(context: dg.AssetExecutionContext) -> Any:
        return slurm.client.run_array(
            context=context,
            command="true",
            tasks=["a", "b", "c", "d", "e"],
            options=OPTIONS,
            on_out_of_memory=MoreMemory(factor=2, attempts=1),
        ).get_materialize_result()

    result = dg.materialize([thing], instance=instance, raise_on_error=False)
    # What failed for another reason keeps the memory that it was given, and nothing is tried a third time.
    assert asked(slurm) == [("abcde", 1024, 1), ("bc", 2048, 1), ("c", 2048, 1), ("d", 1024, 1)]
    (retry,) = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]
    error = retry.step_retry_data.error
    assert error is not None
    assert "4 of 5 tasks failed" in error.to_string()
    assert (
        "A RetryPolicy leaves 'b', 'e' failed (OUT_OF_MEMORY, TIMEOUT) and runs the others again" in error.to_string()
    )
    text, metadata = failure_of(result)
    assert "2 of 5 tasks failed" in text
    assert "A RetryPolicy leaves 'b', 'e' failed (OUT_OF_MEMORY, TIMEOUT). A re-execution from failure runs all" in text
    assert [row.data["attempts"] for row in metadata["tasks"].records] == [1, 2, 2, 1, 1]


def test_one_that_gets_more_memory_doesnt_end_its_siblings(slurm: DagsterSite, instance: dg.DagsterInstance) -> None:
    slurm.script = ends(a=[OUT_OF_MEMORY, COMPLETED], b=[COMPLETED])

    @dg.asset
    def thing(context: dg.AssetExecutionContext) -> Any:
        return slurm.client.run_array(
            context=context,
            command="true",
            tasks=["a", "b"],
            options=OPTIONS,
            on_task_failure="cancel",
            on_out_of_memory=MoreMemory(),
        ).get_materialize_result()

    assert dg.materialize([thing], instance=instance).success
    assert asked(slurm) == [("ab", 1024, 1), ("a", 2048, 1)]
    assert [job.cancel for job in slurm.jobs] == [None, None]
