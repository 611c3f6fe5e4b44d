"""Job arrays on a real Slurm cluster: every rule of a single job holds for each task."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from contract.array_stories import TaskStory, array, follow_tasks
from integration.test_forgetful_slurm import crash, drained, saved
from integration.test_outages import until
from slurmbus.client import SiteClient
from slurmbus.events import StateChanged, TaskEvent
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.arrays import slurm_id
from slurmbus_protocol.messages import Heartbeat, JobOptions, Ping, Record, TaskSpec
from slurmbus_protocol.states import JobState

BEGIN = 'echo "$SLURM_JOB_ID $SLURMD_NODENAME $(date +%s.%N)" >>$HOME/$MARK.$SLURM_ARRAY_TASK_ID; '
END = "; code=$?; date +%s.%N >>$HOME/$MARK.$SLURM_ARRAY_TASK_ID; exit $code"


def tasks(indexes: Iterable[int]) -> list[TaskSpec]:
    return [TaskSpec(index=index, name=f"t{index}", args=(f"t{index}",)) for index in indexes]


def began(cluster: Cluster, mark: str, indexes: Iterable[int]) -> dict[int, list[str]]:
    """Give a line for each time that a task's payload began: its own id, its node, and when."""
    command = f'cd /home/alice; for i in {" ".join(map(str, indexes))}; do echo "= $i"; cat {mark}.$i; done 2>/dev/null'
    said = cluster.exec("login", ["sh", "-c", f"{command}; true"]).stdout
    found: dict[int, list[str]] = {}
    for part in said.split("= ")[1:]:
        index, *lines = part.splitlines()
        found[int(index)] = lines
    return found


def calls(client: SiteClient) -> dict[str, int]:
    until(lambda: any(one.alive for one in client.heartbeats()), 60, "the agent is there")
    return client.ask("info", Ping(sent_at=time.time()), Heartbeat).scheduler.calls


def records_when(client: SiteClient, key: str, count: int, states: set[JobState], seconds: float = 60) -> list[Record]:
    found: list[Record] = []

    def there() -> bool:
        found[:] = [record for record in client.task_records(key).values() if record.state in states]
        return len(found) >= count

    until(there, seconds, f"{count} tasks of {key} are {states}")
    return sorted(found, key=lambda record: record.task)


def states(stories: dict[int, TaskStory]) -> dict[int, JobState]:
    return {index: story.final.state for index, story in sorted(stories.items())}


def test_six_tasks_on_two_nodes_keep_to_their_throttle_and_a_failed_one_runs_again_alone(
    alice: SiteClient, cluster: Cluster
) -> None:
    mark = "throttled"
    whole_node = JobOptions(cpus_per_task=8, mem_per_node_mib=50)
    script = f'{BEGIN} sleep 0.7; echo "out $1"; echo "err $1" >&2; test "$1" != t4 -o -e $HOME/mended{END}'
    job = array(script, tasks(range(6)), env={"MARK": mark}, options=whole_node, array_throttle=2)
    before = calls(alice)
    key = alice.submit(job)
    stories = follow_tasks(alice, {key: range(6)})
    assert states(stories) == {index: JobState.FAILED if index == 4 else JobState.COMPLETED for index in range(6)}
    assert {index: story.stdout for index, story in stories.items()} == {i: f"out t{i}\n" for i in range(6)}
    lines = began(cluster, mark, range(6))
    starts = {index: float(found[0].split()[2]) for index, found in lines.items()}
    ends = {index: float(found[1]) for index, found in lines.items()}
    assert max(sum(starts[i] <= at < ends[i] for i in starts) for at in starts.values()) == 2
    assert {found[0].split()[1] for found in lines.values()} == {"c1", "c2"}
    for index, story in stories.items():
        record = story.final
        assert slurm_id(record) == f"{record.job_id}_{index}"
        assert str(record.task_job_id) == lines[index][0].split()[0]
        assert record.node_list == lines[index][0].split()[1]
    assert len({story.final.job_id for story in stories.values()}) == 1
    assert calls(alice)["submit"] == before.get("submit", 0) + 1
    figures = alice.wait_for_accounting(key, 30, 3).accounting
    assert figures is not None
    assert (figures.state, figures.alloc_cpus) == ("COMPLETED", 8)
    failed = alice.wait_for_accounting(key, 30, 4).accounting
    assert failed is not None
    assert (failed.state, failed.exit_code) == ("FAILED", 1)
    # Alone, under its own number.
    cluster.exec("login", ["touch", "/home/alice/mended"], user="alice")
    again = alice.submit(array(script, tasks([4]), env={"MARK": mark}, options=whole_node))
    stories = follow_tasks(alice, {again: [4]})
    assert states(stories) == {4: JobState.COMPLETED}
    assert {index: len(found) for index, found in began(cluster, mark, range(6)).items()} == {
        0: 2,
        1: 2,
        2: 2,
        3: 2,
        4: 4,
        5: 2,
    }


def test_tasks_that_are_cancelled_or_requeued_one_by_one(alice: SiteClient, cluster: Cluster) -> None:
    mark = "picked"
    # Task 0 ends by itself; task 1 is requeued, task 2 cancelled as it runs; 6 and 7 while they wait.
    script = f'{BEGIN} test "$1" = t0 && exit 0; test "$1" = t1 -a $SLURMBUS_START = 1 && exit 0; sleep 60{END}'
    options = JobOptions(requeue=True, mem_per_node_mib=20)
    key = alice.submit(array(script, tasks(range(8)), env={"MARK": mark}, options=options, array_throttle=3))
    done: set[str] = set()

    def step(event: TaskEvent, stories: dict[int, TaskStory]) -> None:
        now = {index: story.record for index, story in stories.items() if story.record is not None}
        running = {index for index, record in now.items() if record.state is JobState.RUNNING and record.starts}
        if "first" not in done and {1, 2} <= running and now[7].state is JobState.PENDING:
            done.add("first")
            array_id = now[1].job_id
            alice.requeue(key, task=1)
            alice.cancel(key, "this one", task=2)
            alice.cancel(key, "it waits", task=6)
            cluster.exec("login", ["scancel", f"{array_id}_7"], user="alice")  # by its owner, not through Slurmbus
        ended = {index for index, record in now.items() if record.state.is_final}
        if "rest" not in done and {0, 2, 6, 7} <= ended:
            assert not {1, 3, 4, 5} & ended
            done.add("rest")
            for index in (3, 4, 5):  # task 1 waits for one of their turns
                alice.cancel(key, "enough", task=index)

    stories = follow_tasks(alice, {key: range(8)}, step)
    expected = dict.fromkeys(range(8), JobState.CANCELLED) | {0: JobState.COMPLETED, 1: JobState.COMPLETED}
    assert states(stories) == expected
    assert [start.number for start in stories[1].final.starts] == [0, 1]
    assert {
        index: len(story.final.starts) for index, story in stories.items() if index not in {1, 6, 7}
    } == dict.fromkeys((0, 2, 3, 4, 5), 1)
    assert stories[7].final.cancel is None
    assert stories[7].final.submits == 1
    lines = began(cluster, mark, range(8))
    assert lines[6] == lines[7] == []
    asked = cluster.exec("ctld", ["squeue", "-h", "-o", "%i", "-n", f"array.{key}"]).stdout
    assert asked.strip() == ""


@pytest.mark.parametrize("state", [JobState.STAGING, JobState.SUBMITTING])
def test_an_agent_killed_around_the_submit_runs_each_task_once(
    state: JobState, alice: SiteClient, alice_agent: AgentProcess, cluster: Cluster
) -> None:
    mark = f"killed-{state.lower()}"
    order = list(JobState)
    key = alice.submit(array(f"{BEGIN} echo ran{END}", tasks(range(12)), env={"MARK": mark}))
    seen: set[int] = set()
    with alice.follow_tasks({key: range(12)}, streams=False) as events:
        for event in events:
            change = event.event
            if isinstance(change, StateChanged) and order.index(change.record.state) >= order.index(state):
                seen.add(event.task)
            if len(seen) >= (1 if state is JobState.STAGING else 12):
                break
    alice_agent.kill()
    alice_agent.start()
    stories = follow_tasks(alice, {key: range(12)})
    assert set(states(stories).values()) == {JobState.COMPLETED}
    assert {story.stdout for story in stories.values()} == {"ran\n"}
    assert {index: len(lines) for index, lines in began(cluster, mark, range(12)).items()} == dict.fromkeys(
        range(12), 2
    )


def test_an_array_that_the_controller_forgot_is_submitted_again_once(alice: SiteClient, cluster: Cluster) -> None:
    with drained(cluster, "c1,c2"):
        for attempt in range(5):  # a save may come in between
            mark = f"forgotten-array-{attempt}"
            saved(cluster)
            key = alice.submit(array(f"{BEGIN} echo ran{END}", tasks(range(4)), env={"MARK": mark}))
            first = records_when(alice, key, 4, {JobState.PENDING}, 20)
            crash(cluster)
            known = cluster.exec("ctld", ["squeue", "-h", "-o", "%i", "-n", f"array.{key}"], check=False).stdout
            if known.strip() == "":
                break
            alice.cancel(key)
            assert set(states(follow_tasks(alice, {key: range(4)})).values()) == {JobState.CANCELLED}
        else:
            pytest.fail("the controller remembers everything")
        until(lambda: all(r.submits > 1 for r in alice.task_records(key).values()), 120, "it is submitted again")
    stories = follow_tasks(alice, {key: range(4)})
    assert set(states(stories).values()) == {JobState.COMPLETED}
    assert {index: len(lines) for index, lines in began(cluster, mark, range(4)).items()} == dict.fromkeys(range(4), 2)
    assert {record.submits for record in first} == {1}
    assert {story.final.submits for story in stories.values()} == {2}


def test_a_frozen_controller_gets_an_array_once(alice: SiteClient, cluster: Cluster) -> None:
    """A submit without an answer may still be carried out: the claims let each task run once."""
    mark = "frozen-array"
    cluster.daemon("freeze", "slurmctld")
    try:
        key = alice.submit(array(f"{BEGIN} echo ran{END}", tasks(range(4)), env={"MARK": mark}))
        records_when(alice, key, 4, {JobState.SUBMITTING})
        time_to_hang = time.monotonic() + 3
        until(lambda: time.monotonic() > time_to_hang, 10, "the call hangs")
    finally:
        cluster.daemon("thaw", "slurmctld")
    stories = follow_tasks(alice, {key: range(4)})
    assert set(states(stories).values()) == {JobState.COMPLETED}
    assert {index: len(lines) for index, lines in began(cluster, mark, range(4)).items()} == dict.fromkeys(range(4), 2)


def test_two_hundred_tasks_cost_slurm_a_few_calls(alice: SiteClient, cluster: Cluster) -> None:
    before = calls(alice)
    begun = time.monotonic()
    key = alice.submit(array('echo "$1"', tasks(range(200)), options=JobOptions(mem_per_node_mib=10)))
    stories = follow_tasks(alice, {key: range(200)})
    took = time.monotonic() - begun
    assert set(states(stories).values()) == {JobState.COMPLETED}
    assert {index: story.stdout for index, story in stories.items()} == {i: f"t{i}\n" for i in range(200)}
    made = {kind: count - before.get(kind, 0) for kind, count in calls(alice).items()}
    print(f"200 tasks took {took:.1f} s and these calls: {made}")
    assert made["submit"] == 1
    assert made.get("job", 0) == 0
    assert made["jobs"] <= took + 20, made  # the budget: a burst of 20, and one a second
