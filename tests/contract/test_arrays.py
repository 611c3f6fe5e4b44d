"""Job arrays through the real agent, over a real bus; the tasks are processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import RealAgent, agent_site
from contract.array_stories import array, follow_tasks
from contract.bus_site import BusSite, wait_until
from contract.test_bus_outages import empty
from slurmbus.client import SiteClient
from slurmbus.events import StateChanged, TaskEvent
from slurmbus_protocol import subjects
from slurmbus_protocol.arrays import slurm_id
from slurmbus_protocol.messages import FileRef, Heartbeat, Ping, TaskSpec
from slurmbus_protocol.states import JobState


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BusSite, RealAgent]]:
    with agent_site(tmp_path_factory.mktemp("arrays")) as (site, agent):
        yield site, agent


def _submits(client: SiteClient) -> int:
    return client.ask("info", Ping(sent_at=time.time()), Heartbeat).scheduler.calls.get("submit", 0)


def test_each_task_has_its_own_record_streams_context_and_outcome(running: tuple[BusSite, RealAgent]) -> None:
    site, agent = running
    client = site.client
    payload = client.upload_bytes(b"shared\n", "shared.txt")
    own = client.upload_bytes(b"own\n", "own.txt")
    script = (
        'echo "$SLURM_ARRAY_TASK_ID $1 $COLOUR"; cat shared.txt; test -e own.txt && cat own.txt; '
        'cat "$SLURMBUS_SPOOL/context"; echo "err $1" >&2; echo "$1" > result.txt; exit "$2"'
    )
    tasks = [
        TaskSpec(
            index=index,
            name=f"part-{index}",
            args=(f"a{index}", str(index % 3)),
            env={"COLOUR": f"c{index}"} if index else {},
            files=(own,) if index == 4 else (),
            pipes_context=json.dumps({"extras": {"index": index}}).encode(),
        )
        for index in (0, 1, 3, 4)
    ]
    job = array(
        script,
        tasks,
        env={"COLOUR": "none"},
        files=(payload,),
        outputs=("result.txt",),
        pipes_context=json.dumps({"extras": {}, "run_id": "r"}).encode(),
    )
    key = client.submit(job)
    stories = follow_tasks(client, {key: [0, 1, 3, 4]})
    records = {index: story.final for index, story in stories.items()}
    assert {index: record.exit_code for index, record in records.items()} == {0: 0, 1: 1, 3: 0, 4: 1}
    assert {index: record.state for index, record in records.items()} == {
        0: JobState.COMPLETED,
        1: JobState.FAILED,
        3: JobState.COMPLETED,
        4: JobState.FAILED,
    }
    assert {record.tasks for record in records.values()} == {4}
    assert {record.task_name for record in records.values()} == {"part-0", "part-1", "part-3", "part-4"}
    assert len({record.job_id for record in records.values()}) == 1
    assert len({record.task_job_id for record in records.values()}) == 4
    for index, story in stories.items():
        colour = f"c{index}" if index else "none"
        own_file = "own\n" if index == 4 else ""
        context = json.loads(story.stdout.splitlines()[-1])
        assert context == {"extras": {"index": index}, "run_id": "r"}
        assert story.stdout.startswith(f"{index} a{index} {colour}\nshared\n{own_file}")
        assert [ref.path for ref in story.final.outputs] == ["result.txt"]
        assert slurm_id(story.final) == f"{story.final.job_id}_{index}"
        (start,) = story.final.starts
        assert start.job_id == story.final.job_id
        assert start.task_job_id == story.final.task_job_id
    # What they share lies there once, and none may write to it.
    spool = agent.folder / "spool"
    shared = {(spool / "jobs" / f"{key}.{i}" / "work" / "shared.txt").stat().st_ino for i in stories}
    assert len(shared) == 1
    assert not os.access(spool / "jobs" / f"{key}.0" / "request", os.F_OK)
    found = client.find(slurm_id(records[3]))
    assert (found.key, found.task) == (key, 3)


def test_an_array_is_one_call_and_keeps_to_its_throttle(running: tuple[BusSite, RealAgent], tmp_path: Path) -> None:
    site, _ = running
    client = site.client
    before = _submits(client)
    script = f"mkdir {tmp_path}/$1 && sleep 0.2; ls {tmp_path} | wc -l; rmdir {tmp_path}/$1"
    tasks = [TaskSpec(index=index, args=(f"t{index}",)) for index in range(20)]
    key = client.submit(array(script, tasks, array_throttle=2))
    stories = follow_tasks(client, {key: range(20)})
    assert {story.final.state for story in stories.values()} == {JobState.COMPLETED}
    assert max(int(story.stdout) for story in stories.values()) <= 2
    assert _submits(client) == before + 1


def test_one_task_is_cancelled_alone_and_then_all(running: tuple[BusSite, RealAgent]) -> None:
    site, _ = running
    client = site.client
    key = client.submit(array("sleep 60", [TaskSpec(index=i) for i in range(5)], array_throttle=2))
    cancelled: list[object] = []

    def step(event: TaskEvent, stories: dict[int, object]) -> None:
        states = {i: story.record.state for i, story in stories.items() if story.record}  # type: ignore[attr-defined]
        if not cancelled and list(states.values()).count(JobState.RUNNING) == 2:
            assert len(states) == 5
            running = min(i for i, state in states.items() if state is JobState.RUNNING)
            waiting = max(i for i, state in states.items() if state is JobState.PENDING)
            cancelled.extend((running, waiting))
            client.cancel(key, "this one", task=running)
            client.cancel(key, "and that", task=waiting)
        elif len(cancelled) == 2 and {states[i] for i in cancelled} == {JobState.CANCELLED}:  # type: ignore[index]
            others = [state for i, state in states.items() if i not in cancelled]
            assert not any(state.is_final for state in others)
            cancelled.append("all")
            client.cancel(key, "enough")

    stories = follow_tasks(client, {key: range(5)}, step)  # type: ignore[arg-type]
    assert {story.final.state for story in stories.values()} == {JobState.CANCELLED}
    reasons = {i: story.final.cancel.reason for i, story in stories.items() if story.final.cancel}
    assert sorted(reasons.values()) == ["and that", "enough", "enough", "enough", "this one"]


def test_a_cancel_that_comes_first_holds_for_all_tasks_or_for_one(running: tuple[BusSite, RealAgent]) -> None:
    site, _ = running
    client = site.client
    whole, one = subjects.new_ulid(), subjects.new_ulid()
    client.cancel(whole, "never mind")
    client.cancel(one, "not this", task=4)
    wait_until(lambda: client.record(whole) is not None and client.record(one, 4) is not None, "the cancels", 20)
    client.submit(array("echo ran", [TaskSpec(index=i) for i in (3, 4)]), key=one)
    for tasks in [(3,), (3, 4)]:
        assert {story.final.state for story in follow_tasks(client, {whole: tasks}).values()} == {JobState.CANCELLED}
    client.submit(array("echo ran", [TaskSpec(index=i) for i in (3, 4)]), key=whole)
    stories = follow_tasks(client, {whole: (3, 4)})
    assert {story.final.state for story in stories.values()} == {JobState.CANCELLED}
    assert not any(story.stdout for story in stories.values())
    stories = follow_tasks(client, {one: (3, 4)})
    assert {i: story.final.state for i, story in stories.items()} == {3: JobState.COMPLETED, 4: JobState.CANCELLED}


def test_an_empty_bus_gets_the_records_of_all_tasks_back(tmp_path: Path) -> None:
    release = tmp_path / "release"
    wait = f"for _ in $(seq 1200); do test -e {release} && break; sleep 0.05; done"
    script = f'echo "begin $1"; test "$1" = 0 || {{ {wait}; }}; echo "end $1"'
    with agent_site(tmp_path / "site") as (site, _):
        client = site.client
        key = client.submit(array(script, [TaskSpec(index=i, args=(str(i),)) for i in range(4)], array_throttle=3))

        def under_way() -> bool:
            states = [record.state for record in client.task_records(key).values()]
            return states.count(JobState.RUNNING) == 3 and JobState.COMPLETED in states

        wait_until(under_way, "one task has ended, three run", 30)
        before = client.task_records(key)
        bus_id = client.connection.session.bus_id
        empty(site)
        wait_until(lambda: client.connection.session.bus_id != bus_id, "the new bus to be set up")
        wait_until(lambda: len(client.task_records(key)) == 4, "all records are back", 60)
        release.touch()
        stories = follow_tasks(client, {key: range(4)})
        assert {story.final.state for story in stories.values()} == {JobState.COMPLETED}
        assert {i: story.stdout for i, story in stories.items()} == {i: f"begin {i}\nend {i}\n" for i in range(4)}
        assert {story.final.job_id for story in stories.values()} == {before[0].job_id}
        assert {story.final.tasks for story in stories.values()} == {4}


def test_an_agent_that_is_killed_at_any_moment_runs_each_task_once(tmp_path: Path) -> None:
    with agent_site(tmp_path / "site") as (site, agent):
        client = site.client
        ran = tmp_path / "ran"
        ran.mkdir()
        keys = []
        for round_ in range(3):
            script = f'echo "$1" >> {ran}/{round_}.$SLURM_ARRAY_TASK_ID; sleep 0.1; echo "done $1"'
            tasks = [TaskSpec(index=i, args=(str(i),)) for i in range(8)]
            keys.append(client.submit(array(script, tasks, array_throttle=4)))
            assert agent.process is not None
            # Killed as soon as so many of its tasks are on their way: from none to all.
            wanted = {0: 1, 1: 8, 2: 8}[round_]
            state = (JobState.ACCEPTED, JobState.SUBMITTING, JobState.RUNNING)[round_]
            _kill_when(site, agent, keys[-1], state, wanted)
            agent.process.wait()
            agent.start()
        for round_, key in enumerate(keys):
            stories = follow_tasks(client, {key: range(8)})
            assert {story.final.state for story in stories.values()} == {JobState.COMPLETED}
            for index, story in stories.items():
                assert (ran / f"{round_}.{index}").read_text() == f"{index}\n"
                assert story.stdout == f"done {index}\n"


def _kill_when(site: BusSite, agent: RealAgent, key: str, state: JobState, wanted: int) -> None:
    assert agent.process is not None
    order = list(JobState)
    seen: set[int] = set()
    with site.client.follow_tasks({key: range(8)}, streams=False) as events:
        for event in events:
            change = event.event
            if isinstance(change, StateChanged) and order.index(change.record.state) >= order.index(state):
                seen.add(event.task)
            if len(seen) >= wanted:
                break
    os.kill(agent.process.pid, signal.SIGKILL)


def test_a_thousand_tasks_are_accepted_quickly_and_followed_by_one_set_of_readers(
    running: tuple[BusSite, RealAgent],
) -> None:
    site, _ = running
    client = site.client
    tasks = [TaskSpec(index=i, name=f"2026-{i}", args=(str(i),), pipes_context=b'{"extras":{}}') for i in range(1000)]
    job = array("echo $1", tasks, pipes_context=b"{}", array_throttle=4)
    before = _submits(client)
    key = client.submit(job)
    accepted: set[int] = set()
    with client.follow_tasks({key: range(1000)}, streams=False) as events:
        for event in events:
            accepted.add(event.task)
            if len(accepted) == 1000:
                break
    pending: set[int] = set()
    with client.follow_tasks({key: range(1000)}) as events:
        for event in events:
            if isinstance(event.event, StateChanged) and event.event.record.job_id is not None:
                pending.add(event.task)
            if len(pending) == 1000:
                break
    client.cancel(key, "that will do")
    stories = follow_tasks(client, {key: range(1000)})
    assert len(stories) == 1000
    assert {story.final.state for story in stories.values()} <= {JobState.COMPLETED, JobState.CANCELLED}
    beat = client.ask("info", Ping(sent_at=time.time()), Heartbeat)
    assert beat.scheduler.calls["submit"] == before + 1
    assert beat.vitals.rss < 250 * 1024**2


def test_tasks_that_cant_be_told_apart_are_refused(running: tuple[BusSite, RealAgent]) -> None:
    site, _ = running
    client = site.client
    key = client.submit(array("true", [TaskSpec(index=1), TaskSpec(index=1)]))
    wait_until(lambda: client.record(key) is not None, "the answer", 20)
    record = client.record(key)
    assert record is not None
    assert (record.state, record.error_code) == (JobState.REJECTED, "invalid-body")
    assert "tasks" in (record.reason or "")
    stories = follow_tasks(client, {key: (1, 2)})
    assert {story.final.error_code for story in stories.values()} == {"invalid-body"}


def test_a_file_that_isnt_there_ends_one_task_and_not_its_siblings(running: tuple[BusSite, RealAgent]) -> None:
    site, _ = running
    client = site.client
    lost = FileRef(path="/etc/passwd", sha256="0" * 64, size=3)
    tasks = [TaskSpec(index=0), TaskSpec(index=1, files=(lost,)), TaskSpec(index=2)]
    stories = follow_tasks(client, {client.submit(array("echo ok", tasks)): range(3)})
    assert {i: story.final.state for i, story in stories.items()} == {
        0: JobState.COMPLETED,
        1: JobState.REJECTED,
        2: JobState.COMPLETED,
    }
