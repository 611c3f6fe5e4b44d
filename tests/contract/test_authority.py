"""What an agent may do, for whom and until when: a real agent, whose files are changed while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from contract.agent_site import SITE, shell
from contract.authority_site import QUICK, Guarded, guarded_site, signed, submission
from contract.bus_site import wait_until
from slurmbus import authority
from slurmbus.errors import ControlNotAllowed, check_refusal, check_requeue
from slurmbus_protocol import grants
from slurmbus_protocol.errors import NotRequeueable
from slurmbus_protocol.messages import JobOptions, JobSpec, Requeue, TaskSpec
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_site(tmp_path_factory.mktemp("guarded")) as site:
        yield site


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """A file that lets jobs end which wait for it; it comes at the latest when the test is over."""
    path = tmp_path / "go"
    yield path
    path.touch()


def waiting(go: Path) -> JobSpec:
    return shell(f"for _ in $(seq 1200); do test -e {go} && exit 0; sleep 0.05; done; exit 1")


# ---------------------------------------------------------------------- policy


def test_a_policy_is_taken_and_dropped_without_a_restart(guarded: Guarded) -> None:
    before = guarded.heartbeat().agent_id
    big = JobSpec(name="big", plan=QUICK.plan, options=JobOptions(nodes=2))
    with guarded.policy("max_nodes = 1\n") as policy:
        wait_until(lambda: guarded.run(big).error_code == "policy", "the policy to be read")
        record = guarded.run(big)
        assert (record.state, record.name) == (JobState.REJECTED, "big")
        assert record.reason is not None
        assert record.reason.startswith("nodes: 2 are more than 1")
        assert str(policy) in record.reason
        assert record.hint == "ask for 1 or less"
        assert guarded.run().state is JobState.COMPLETED
        assert any(line["what"] == "refused" and line["error"] == "policy" for line in guarded.audit())
    wait_until(lambda: guarded.run(big).error_code != "policy", "the policy to be forgotten")
    assert guarded.heartbeat().agent_id == before


def test_a_policy_that_breaks_stops_new_jobs_and_says_so(guarded: Guarded, go: Path) -> None:
    key = guarded.client.submit(waiting(go))
    guarded.wait_for_state(key, JobState.RUNNING)
    with guarded.policy("max_nodse = 1\n"):
        wait_until(lambda: guarded.run().state is JobState.REJECTED, "the policy to be read")
        assert "max_nodse" in (guarded.run().reason or "")
        wait_until(lambda: any("max_nodse" in alarm for alarm in guarded.heartbeat().alarms), "the alarm")
        assert guarded.record(key).state is JobState.RUNNING
        go.touch()
        guarded.wait_for_state(key, JobState.COMPLETED)
    wait_until(lambda: guarded.run().state is JobState.COMPLETED, "the policy to be forgotten")


def test_jobs_at_once_are_limited(guarded: Guarded, go: Path) -> None:
    one = guarded.client.submit(waiting(go))
    guarded.wait_for_state(one, JobState.RUNNING)
    with guarded.policy("max_jobs = 1\n"):
        wait_until(lambda: guarded.run().error_code == "policy", "the policy to be read")
        assert "1 unfinished and 1 more are more than 1" in (guarded.run().reason or "")
        go.touch()
        guarded.wait_for_state(one, JobState.COMPLETED)
        wait_until(lambda: guarded.run().state is JobState.COMPLETED, "room for another one")

    def forgotten() -> bool:
        guarded.run()  # a request has the agent look
        return [line["policies"] for line in guarded.audit() if line["what"] == "policy"][-1] == []

    wait_until(forgotten, "the policy to be forgotten")


# ---------------------------------------------------------------------- authority that ends


def test_authority_ends_is_renewed_and_never_touches_what_runs(guarded: Guarded, go: Path) -> None:
    """After its end no new jobs; the running one is followed, and may be cancelled; a login brings it back."""
    home, path = guarded.site.home, guarded.beside_bundle("grant")
    running = guarded.client.submit(waiting(go))
    ending = guarded.client.submit(waiting(go))
    for key in (running, ending):
        guarded.wait_for_state(key, JobState.RUNNING)
    before = guarded.heartbeat().agent_id
    try:
        long_ago = time.time() - 8 * grants.DAY
        path.write_bytes(grants.write(grants.issue(guarded.signer, SITE, "alice@laptop", now=long_ago)))
        wait_until(lambda: guarded.run().state is JobState.REJECTED, "the end of the authority")
        wait_until(lambda: any("authority has ended" in alarm for alarm in guarded.heartbeat().alarms), "the alarm")
        assert guarded.heartbeat().authority_expires_at == pytest.approx(long_ago + 7 * grants.DAY)
        record = guarded.run()
        assert (record.state, record.error_code) == (JobState.REJECTED, "authority-expired")
        assert f"log in: slurmbus up {SITE}" in (record.hint or "")
        assert guarded.client.wait_for_accounting(record.key, 3600) == record  # of which accounting knows nothing
        guarded.client.cancel(ending)
        guarded.wait_for_state(ending, JobState.CANCELLED)
        go.touch()
        guarded.wait_for_state(running, JobState.COMPLETED)
        authority.keep(home, SITE, authority.issue(home, SITE, days=0.5))
        wait_until(lambda: guarded.run().state is JobState.COMPLETED, "the renewed authority")
        wait_until(lambda: any("authority ends in" in alarm for alarm in guarded.heartbeat().alarms), "the alarm")
        assert guarded.heartbeat().agent_id == before
        assert any(line["what"] == "authority" for line in guarded.audit())
    finally:
        path.unlink(missing_ok=True)
    # An idle agent looks, and tells what it saw, with its heartbeats.
    wait_until(lambda: guarded.heartbeat().authority_expires_at is None, "the grant to be forgotten", 60.0)


# ---------------------------------------------------------------------- whose job it is


def test_another_deployment_cannot_cancel_or_requeue_and_sees_why(guarded: Guarded, go: Path) -> None:
    with guarded.deployment("other") as other:
        key = guarded.client.submit(msgspec.structs.replace(waiting(go), options=JobOptions(requeue=True)))
        guarded.wait_for_state(key, JobState.RUNNING)
        assert guarded.record(key).signer == guarded.signer.public

        def refused(control: str) -> bool:
            shown = guarded.record(key).refused
            return shown is not None and shown.id == control

        control = other.requeue(key)
        wait_until(lambda: refused(control), "the refusal")
        with pytest.raises(NotRequeueable, match="submitted with the key"):
            check_requeue(guarded.record(key), control)
        assert guarded.record(key).requeues == ()
        control = other.cancel(key)
        wait_until(lambda: refused(control), "the refusal")
        with pytest.raises(ControlNotAllowed, match="submitted with the key"):
            check_refusal(guarded.record(key), control)
        assert guarded.record(key).cancel is None
        with guarded.policy('control = "trusted"\n'):
            wait_until(lambda: "policy.toml" in str(guarded.audit()[-1]), "the policy to be read")
            other.cancel(key)
            guarded.wait_for_state(key, JobState.CANCELLED)


def test_a_requeue_is_answered_once_and_the_answer_stays(guarded: Guarded, go: Path) -> None:
    """Local processes can't be requeued: the scheduler's own no. The same request again reaches it no more."""
    key = guarded.client.submit(msgspec.structs.replace(waiting(go), options=JobOptions(requeue=True)))
    guarded.wait_for_state(key, JobState.RUNNING)
    wish = Requeue(id=new_ulid(), key=key, site=SITE, expires_at=time.time() + 600, submitter="alice@laptop")
    request = signed(wish, guarded.signer)
    guarded.publish(*request)
    wait_until(lambda: guarded.record(key).refused is not None, "the refusal")
    record = guarded.record(key)
    with pytest.raises(NotRequeueable, match="a local process can't be requeued"):
        check_requeue(record, wish.id)
    assert [(one.id, one.outcome) for one in record.requeues] == [(wish.id, "refused")]

    def taken() -> int:
        return sum(wish.id in str(line["subject"]) for line in guarded.audit() if "subject" in line)

    assert taken() == 1
    guarded.publish(*request)
    wait_until(lambda: taken() == 2, "the request to come again")
    go.touch()
    final = guarded.wait_for_state(key, JobState.COMPLETED)
    assert final.requeues == record.requeues
    with pytest.raises(NotRequeueable, match="has ended"):
        guarded.client.requeue(key)


def test_a_job_that_may_not_start_again_isnt_requeued(guarded: Guarded, go: Path) -> None:
    key = guarded.client.submit(waiting(go))
    guarded.wait_for_state(key, JobState.RUNNING)
    control = guarded.client.requeue(key, "once more")
    wait_until(lambda: guarded.record(key).refused is not None, "the refusal")
    with pytest.raises(NotRequeueable, match="wasn't submitted as one that may start again") as caught:
        check_requeue(guarded.record(key), control)
    assert caught.value.hint == "submit it with requeue=True"
    go.touch()
    guarded.wait_for_state(key, JobState.COMPLETED)


def test_the_tasks_of_an_array_are_requeued_one_by_one(guarded: Guarded, go: Path) -> None:
    tasks, options = (TaskSpec(index=0), TaskSpec(index=1)), JobOptions(requeue=True)
    key = guarded.client.submit(msgspec.structs.replace(waiting(go), tasks=tasks, options=options))
    for task in (0, 1):
        wait_until(lambda: guarded.record(key, task).state is JobState.RUNNING, "the tasks to run")  # noqa: B023
    control = guarded.client.requeue(key)
    wait_until(lambda: guarded.record(key).refused is not None, "the refusal")
    with pytest.raises(NotRequeueable, match="one by one") as caught:
        check_requeue(guarded.record(key), control)
    assert caught.value.hint == "name the task"
    control = guarded.client.requeue(key, task=1)
    wait_until(lambda: guarded.record(key, 1).refused is not None, "the scheduler's no")
    assert [one.id for one in guarded.record(key, 1).requeues] == [control]
    assert guarded.record(key).requeues == ()
    go.touch()
    for task in (0, 1):
        wait_until(lambda: guarded.record(key, task).state is JobState.COMPLETED, "the tasks' end")  # noqa: B023


def test_an_array_that_was_refused_stays_so_when_it_comes_again(guarded: Guarded, tmp_path: Path) -> None:
    tasks = (TaskSpec(index=0), TaskSpec(index=1))
    job = msgspec.structs.replace(shell(f"echo ran >> {tmp_path}/ran"), options=JobOptions(nodes=2), tasks=tasks)
    with guarded.policy("max_nodes = 1\n"):
        big = JobSpec(name="big", plan=QUICK.plan, options=JobOptions(nodes=2))
        wait_until(lambda: guarded.run(big).error_code == "policy", "the policy to be read")
        message = submission(job)
        guarded.publish(*signed(message, guarded.signer))
        assert guarded.wait_for_state(message.key, JobState.REJECTED).error_code == "policy"
    wait_until(lambda: guarded.run(big).error_code != "policy", "the policy to be forgotten")
    guarded.publish(*signed(message, guarded.signer))
    wait_until(lambda: "it was refused before" in {line.get("message") for line in guarded.audit()}, "the second no")
    assert guarded.run().state is JobState.COMPLETED
    assert list(guarded.client.task_records(message.key)) == [0]
    assert not (tmp_path / "ran").exists()


def test_a_link_in_an_allowed_folder_leads_no_job_out_of_it(guarded: Guarded, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "out").symlink_to(tmp_path)
    with guarded.policy(f'folders = ["{allowed}"]\n'):
        outside = msgspec.structs.replace(QUICK, cwd=str(allowed / "out"))
        wait_until(lambda: guarded.run(outside).state is JobState.REJECTED, "the policy to be read")
        record = guarded.run(outside)
        assert guarded.run(msgspec.structs.replace(QUICK, cwd=str(allowed))).state is JobState.COMPLETED
    assert (record.state, record.error_code) == (JobState.REJECTED, "policy")
    assert f"is a link to '{tmp_path}'" in (record.reason or "")


# ---------------------------------------------------------------------- the stop file


@pytest.mark.parametrize("place", ["spool", "config"])
def test_a_stop_file_ends_the_agent_and_keeps_it_down(guarded: Guarded, go: Path, place: str) -> None:
    key = guarded.client.submit(waiting(go))
    guarded.wait_for_state(key, JobState.RUNNING)
    stop = guarded.spool / "stop" if place == "spool" else guarded.beside_bundle("stop")
    process = guarded.agent.process
    assert process is not None
    stop.touch()
    try:
        assert process.wait(20) == 4
        words = guarded.heartbeat().alarms
        assert any(str(stop) in alarm for alarm in words)
        assert guarded.heartbeat().released
        assert guarded.audit()[-1]["what"] == "stopped"
        noted = guarded.audit()
        for _ in range(2):
            guarded.agent.start()
            assert guarded.agent.process is not None
            assert guarded.agent.process.wait(20) == 4
        log = (guarded.folder / "agent.log").read_text()
        assert "remove the file" in log
        assert guarded.audit() == noted  # whatever starts it again and again, only what has changed is noted
        go.touch()
    finally:
        stop.unlink()
        guarded.agent.start()
        guarded.agent.wait_until_it_serves()
    guarded.wait_for_state(key, JobState.COMPLETED)
