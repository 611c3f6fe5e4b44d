"""``run_array()`` in real Dagster runs: local mode, with the helper and its own agent."""

# No "from __future__ import annotations" here: Dagster reads the annotations of assets at run time.
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from contract.scripted_jobs import failure_of, log_of, output_of
from dagster_slurmbus import ArrayTask, CompletedArray, ComputeResource, PipesSlurmClient, partition_tasks
from dagster_slurmbus.bus import local_client
from slurmbus.home import Home
from slurmbus.local import stop_local
from slurmbus_protocol.messages import Heartbeat, Ping
from slurmbus_protocol.states import JobState

PAYLOAD = Path(__file__).parent / "payloads" / "task.py"

pytestmark = pytest.mark.filterwarnings(  # Dagster's own, for every nested resource
    "ignore:InitResourceContext.dagster_run is deprecated:DeprecationWarning"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("arrays") / "slurmbus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURMBUS_HOME", str(home))
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        yield home
        stop_local(Home(home))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


def ran(folder: Path) -> dict[str, int]:
    """Tell how often each task's payload ran."""
    return {path.name.removeprefix("ran-"): len(path.read_text().split()) for path in folder.glob("ran-*")}


def test_only_failed_tasks_run_again_when_the_step_is_retried(
    home: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b", "d"):
        (folder / f"fail-{name}").touch()
    seen: list[CompletedArray] = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1), check_specs=[dg.AssetCheckSpec("complete", asset="model")])
    def model(context: dg.AssetExecutionContext, compute: ComputeResource) -> Iterator[Any]:
        done = compute.run_array(
            context=context,
            payload_path=PAYLOAD,
            tasks=["a", "b", {"name": "c", "args": ["c"], "extras": {"rows": 3}}, ArrayTask(args=["d"])],
            extras={"folder": str(folder), "check": True},
            outputs=["result.txt"],
            throttle=2,
        )
        seen.append(done)
        yield from done.get_results()

    result = dg.materialize([model], instance=instance, resources={"compute": ComputeResource()}, raise_on_error=False)
    assert ran(folder) == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert result.success
    text = "\n".join(log_of(instance, result.run_id))
    (retry,) = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]
    error = retry.step_retry_data.error
    assert error is not None
    told = error.to_string()
    assert "2 of 4 tasks failed" in told
    assert "[b] local job" in told
    assert "exit code 7" in told
    assert "b can't go on" in told
    assert "going on with 2 tasks" in text
    assert "running 2 tasks again: b, d" in text
    assert "[a] task a of 0" in text
    (done,) = seen
    assert [task.name for task in done] == ["a", "b", "c", "d"]
    assert [task.index for task in done] == [0, 1, 2, 3]
    assert [task.reattached for task in done] == [True, False, True, False]
    assert {task.state for task in done} == {"COMPLETED"}
    assert done["b"].record.key != done["a"].record.key
    assert [message["name"] for message in done.get_custom_messages()] == ["a", "b", "c", "d"]
    assert [task.outputs["result.txt"].read_text() for task in done] == [f"result of {n}\n" for n in "abcd"]
    (materialization,) = result.asset_materializations_for_node("model")
    assert materialization.metadata["rows"].value == {"a": 0, "b": 0, "c": 3, "d": 0}
    assert materialization.metadata["slurmbus/tasks_in_all"].value == 4
    table = materialization.metadata["slurmbus/tasks"].value
    assert [row.data["state"] for row in table.records] == ["COMPLETED"] * 4  # type: ignore[union-attr]
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.metadata["failed_tasks"].value == ["c"]
    shown = output_of(result, instance)[0].decode()
    for name, times in {"a": 1, "b": 2, "c": 1, "d": 2}.items():
        assert shown.count(f"[{name}] hello from {name}\n") == times


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`")  # beta
def test_each_partition_of_a_single_run_backfill_is_a_task(
    home: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-10")

    @dg.asset(partitions_def=days, backfill_policy=dg.BackfillPolicy.single_run())
    def daily(context: dg.AssetExecutionContext, slurm: PipesSlurmClient) -> Any:
        done = slurm.run_array(
            context=context,
            command=["python3", "task.py"],
            files=[PAYLOAD],
            tasks=partition_tasks(context),
            extras={"folder": str(folder)},
        )
        windows = {task.name: task.messages[0]["partition"] for task in done}
        assert windows == {name: name for name in windows}
        return done.get_materialize_result()

    result = dg.materialize(
        [daily],
        instance=instance,
        resources={"slurm": PipesSlurmClient.local(home=home)},
        tags={ASSET_PARTITION_RANGE_START_TAG: "2026-01-02", ASSET_PARTITION_RANGE_END_TAG: "2026-01-04"},
    )
    keys = ["2026-01-02", "2026-01-03", "2026-01-04"]
    assert ran(folder) == dict.fromkeys(keys, 1)
    found = {one.partition: one.metadata for one in result.asset_materializations_for_node("daily")}
    assert sorted(found) == keys
    for key, metadata in found.items():
        assert metadata["name"].value == key
        assert metadata["slurmbus/task"].value == key
        assert metadata["slurmbus/tasks_in_all"].value == 3


def test_a_failed_array_names_each_failed_task_or_leaves_it_to_the_asset(
    home: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    script = 'echo "words of $1" >&2; exit "$2"'
    tasks = [ArrayTask(name=f"p{code}", args=(f"p{code}", str(code))) for code in (0, 3, 4)]
    client = PipesSlurmClient.local(home=home)
    command = ["sh", "-c", script, "task"]

    @dg.asset
    def strict(context: dg.AssetExecutionContext) -> Any:
        return client.run_array(context=context, command=command, tasks=tasks).get_materialize_result()

    @dg.asset
    def lenient(context: dg.AssetExecutionContext) -> Any:
        done = client.run_array(context=context, command=command, tasks=tasks, on_task_failure="continue")
        assert [task.name for task in done.failed] == ["p3", "p4"]
        assert [task.exit_code for task in done.failed] == [3, 4]
        alone = client.run_array(context=context, command=command, tasks=tasks, only=["p0"])
        assert [(task.name, task.index) for task in alone] == [("p0", 0)]
        return done.get_materialize_result()

    @dg.asset
    def quick(context: dg.AssetExecutionContext) -> Any:
        slow = [ArrayTask(name="bad", args=("1",)), ArrayTask(name="slow", args=("0",))]
        words = 'test "$1" = 0 && exec sleep 60; exit 1'
        return client.run_array(
            context=context, command=["sh", "-c", words, "task"], tasks=slow, throttle=2, on_task_failure="cancel"
        ).get_materialize_result()

    text, metadata = failure_of(dg.materialize([strict], instance=instance, raise_on_error=False))
    assert "2 of 3 tasks failed" in text
    assert "[p3]" in text
    assert "exit code 3" in text
    assert "words of p4" in text
    assert "only=['p3', 'p4']" in text
    rows = metadata["failed_tasks"].records
    assert [row.data["task"] for row in rows] == ["p3", "p4"]
    assert dg.materialize([lenient], instance=instance).success
    begun = time.monotonic()
    text, _ = failure_of(dg.materialize([quick], instance=instance, raise_on_error=False))
    assert "2 of 2 tasks failed" in text
    assert "[bad]" in text
    assert time.monotonic() - begun < 50, "the slow task wasn't cancelled"


def test_two_hundred_tasks_are_one_submit(home: Path, instance: dg.DagsterInstance) -> None:
    client = PipesSlurmClient.local(home=home)

    def submits() -> int:
        beat = local_client(home).ask("info", Ping(sent_at=time.time()), Heartbeat)
        return beat.scheduler.calls.get("submit", 0)

    @dg.asset
    def many(context: dg.AssetExecutionContext) -> Any:
        done = client.run_array(context=context, command=["true"], tasks=[{"name": f"t{i}"} for i in range(200)])
        assert len(done.succeeded) == 200
        return done.get_materialize_result()

    local_client(home).records()
    before = submits()
    assert dg.materialize([many], instance=instance).success
    assert submits() == before + 1


def test_mistakes_are_told_before_anything_is_submitted(home: Path, instance: dg.DagsterInstance) -> None:
    client = PipesSlurmClient.local(home=home)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": ["a", "a"]}, "have the same name 'a'"),
        ({"tasks": [{"nam": "a"}]}, "did you mean 'name'"),
        ({"tasks": ["a"], "only": ["b"]}, "there is no task 'b'"),
        ({"tasks": ["a"], "throttle": 0}, "throttle=0"),
        ({"tasks": "a"}, "tasks is a list"),
        ({"tasks": [ArrayTask(extras={"x": object()})]}, "must be JSON"),
    ]

    @dg.asset
    def mistaken(context: dg.AssetExecutionContext) -> Any:
        return client.run_array(context=context, command=["true"], **given).get_materialize_result()

    for given, words in wrong:  # noqa: B007  # the asset uses it
        text, _ = failure_of(dg.materialize([mistaken], instance=instance, raise_on_error=False))
        assert words in text


def test_states_are_final(home: Path) -> None:
    assert {record.state.is_final for record in local_client(home).records()} == {True}
    assert JobState.COMPLETED in {record.state for record in local_client(home).records()}
