"""What Slurm forgets and repeats: a payload runs once, and the final state is the true one or honestly unknown."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from integration.jobs import Story, follow, run, spec
from integration.test_outages import frozen_controller, until
from slurmbus.client import SiteClient
from slurmbus.errors import check_requeue
from slurmbus.events import Output, StateChanged
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.errors import NotRequeueable
from slurmbus_protocol.messages import JobOptions, Record
from slurmbus_protocol.states import JobState

BEGIN = 'echo "$SLURM_JOB_ID $SLURMD_NODENAME" >>$HOME/ran.$MARK; '
"""The payload's own word that it runs, independent of claims and reports."""


def fresh(mark: str) -> str:
    """Make a mark that nobody has used: these tests run with each scheduler, on one cluster."""
    return f"{mark}-{secrets.token_hex(3)}"


def submit(client: SiteClient, mark: str, text: str, options: JobOptions | None = None) -> str:
    return client.submit(spec("bash", "-c", BEGIN + text, env={"MARK": mark}, options=options, name=mark))


def executions(cluster: Cluster, mark: str) -> list[str]:
    """Give one line for each time that the payload ran."""
    return cluster.exec("login", ["sh", "-c", f"cat /home/alice/ran.{mark} 2>/dev/null || true"]).stdout.splitlines()


def record_when(client: SiteClient, key: str, states: set[JobState], seconds: float = 60.0) -> Record:
    found: list[Record] = []

    def there() -> bool:
        record = client.record(key)
        found[:] = [record] if record is not None else []
        return record is not None and record.state in states

    until(there, seconds, f"{key} is one of {states}")
    return found[0]


def slurm_rows(cluster: Cluster, record: Record) -> list[list[str]]:
    """Give (job id, state, exit code) of every Slurm job that had the record's name, from accounting."""
    command = ["sacct", "-S", "1970-01-02", "-X", "-n", "-P", "--format=JobIDRaw,State,ExitCode"]
    shown = cluster.exec("ctld", [*command, f"--name={record.name}.{record.key}"]).stdout
    return [line.split("|") for line in shown.splitlines()]


@contextmanager
def drained(cluster: Cluster, node: str) -> Iterator[None]:
    """Keep jobs from starting on a node."""
    cluster.exec("ctld", ["scontrol", "update", f"nodename={node}", "state=drain", "reason=test"])
    try:
        yield
    finally:
        resume(cluster, node)


def resume(cluster: Cluster, node: str) -> None:
    cluster.exec("ctld", ["scontrol", "update", f"nodename={node}", "state=resume"], check=False)


def crash(cluster: Cluster, daemon: str = "slurmctld") -> None:
    cluster.daemon("kill", daemon)
    cluster.daemon("start", daemon)


SAVED = ("stat", "-c", "%Y.%i", "/var/lib/slurm/slurmctld/job_state")


@contextmanager
def saving(cluster: Cluster) -> Iterator[None]:
    """Leave when the controller has saved its state after what was done here; it saves every 5 s at most."""
    before = cluster.exec("ctld", SAVED).stdout
    yield
    until(lambda: cluster.exec("ctld", SAVED).stdout != before, 15, "the controller saves its state")


def saved(cluster: Cluster) -> None:
    """Wait for the controller's next save, so that what follows at once isn't saved."""
    with saving(cluster):
        cluster.exec("login", ["sbatch", "--wrap", "true", "-o", "/dev/null", "-J", "save"], user="bob")


def forget(alice: SiteClient, cluster: Cluster) -> tuple[str, str, Record]:
    """Make the controller forget a pending job; give its mark, its key and its record as it was."""
    for attempt in range(5):  # a save may come in between
        mark = fresh(f"forgotten-{attempt}")
        saved(cluster)
        key = submit(alice, mark, "echo ran", JobOptions(nodelist="c2"))
        record = record_when(alice, key, {JobState.PENDING}, 10)
        crash(cluster)
        if state_of(cluster, record.job_id) == "":
            return mark, key, record
        alice.cancel(key)
        assert follow(alice, key).record.state is JobState.CANCELLED
    pytest.fail("the controller remembers everything")


def test_a_pending_job_that_the_controller_forgot_is_submitted_again_and_its_id_may_be_anothers(
    alice: SiteClient, cluster: Cluster
) -> None:
    with drained(cluster, "c2"):
        mark, key, first = forget(alice, cluster)
        # Bob's next job gets the forgotten one's id.
        sbatch = ["sbatch", "--parsable", "-o", "/dev/null", "-w", "c2", "--wrap", "true"]
        bobs = int(cluster.exec("login", sbatch, user="bob").stdout)
        until(
            lambda: (record := alice.record(key)) is not None and (record.submits > 1 or record.state.is_final),
            90,
            "the job is submitted again",
        )
    story = follow(alice, key)
    assert (story.record.state, story.stdout) == (JobState.COMPLETED, "ran\n")
    assert len(executions(cluster, mark)) == 1
    assert bobs == first.job_id
    assert story.record.job_id != first.job_id
    cluster.wait_job(bobs, ["COMPLETED"])


def start_twice(alice: SiteClient, cluster: Cluster, text: str) -> tuple[str, Story]:
    """Crash the controller so that it remembers a running job as pending; give the mark and how it went."""
    for attempt in range(5):  # a save may come in between
        mark = fresh(f"twice-{attempt}")
        with drained(cluster, "c1,c2"), saving(cluster):
            key = submit(alice, mark, text)
            record_when(alice, key, {JobState.PENDING}, 10)
        until(lambda: executions(cluster, mark), 30, "the payload runs")  # noqa: B023
        crash(cluster)
        resume(cluster, "c1,c2")  # that, too, wasn't saved
        story = follow(alice, key)
        assert len(executions(cluster, mark)) == 1
        if story.record.error_code == "started-twice":
            return mark, story
    pytest.fail("the controller never started a job twice")


def test_a_running_job_that_slurm_starts_a_second_time_runs_once_and_is_no_success(
    alice: SiteClient, cluster: Cluster
) -> None:
    mark, story = start_twice(alice, cluster, "echo begun; sleep 20; echo done")
    assert story.record.state is JobState.FAILED
    assert "a second time" in (story.record.reason or "")
    assert story.stdout.startswith("begun\n")
    assert len(executions(cluster, mark)) == 1
    assert [row[1] for row in slurm_rows(cluster, story.record)] == ["FAILED"]


def test_a_running_job_that_the_controller_forgot_is_lost_and_never_a_success(
    alice: SiteClient, cluster: Cluster
) -> None:
    for attempt in range(5):
        mark = fresh(f"orphan-{attempt}")
        saved(cluster)
        key = submit(alice, mark, "echo begun; sleep 15; echo done")
        until(lambda: executions(cluster, mark), 30, "the payload runs")  # noqa: B023
        crash(cluster)
        story = follow(alice, key)
        assert len(executions(cluster, mark)) == 1
        if story.record.state is JobState.LOST:
            break
    else:
        pytest.fail("the controller remembers everything")
    assert story.record.reason
    assert story.record.hint
    assert story.record.sealed or story.record.starts[-1].ended_at is not None


def test_a_submit_that_a_frozen_controller_carries_out_late_runs_once(alice: SiteClient, cluster: Cluster) -> None:
    assert run(alice, "true").record.state is JobState.COMPLETED  # the controller answered just now and isn't pinged
    with frozen_controller(cluster):
        mark = fresh("late")
        key = submit(alice, mark, "echo ran")
        record = record_when(alice, key, {JobState.SUBMITTING}, 10)
        until(
            lambda: (found := alice.record(key)) is not None and found.reason is not None,
            60,
            "the agent gave the submit's answer up",
        )
        assert record.job_id is None
    story = follow(alice, key)
    assert (story.record.state, story.stdout) == (JobState.COMPLETED, "ran\n")
    assert len(executions(cluster, mark)) == 1
    ends = [row for row in slurm_rows(cluster, story.record) if int(row[0]) != story.record.job_id]
    assert all(row[1] != "COMPLETED" for row in ends), f"a twin of job {story.record.job_id} ran: {ends}"


def test_a_requeue_is_followed_into_the_next_start(alice: SiteClient, cluster: Cluster) -> None:
    mark = fresh("requeued")
    key = alice.submit(
        spec(
            "bash",
            "-c",
            BEGIN + 'n=$(wc -l <$HOME/ran.$MARK); echo start $n; [ "$n" = 2 ] || sleep 600',
            env={"MARK": mark},
            options=JobOptions(requeue=True),
        )
    )
    outputs: dict[int, bytes] = {}
    states: list[JobState] = []
    final: Record | None = None
    for event in alice.follow(key):
        if isinstance(event, Output):
            outputs[event.start] = outputs.get(event.start, b"") + event.data
            if event.start == 0:
                record = alice.record(key)
                assert record is not None
                cluster.exec("ctld", ["scontrol", "requeue", str(record.job_id)])
        elif isinstance(event, StateChanged):
            states.append(event.record.state)
            final = event.record
    assert final is not None
    assert outputs == {0: b"start 1\n", 1: b"start 2\n"}
    assert final.state is JobState.COMPLETED
    assert [start.number for start in final.starts] == [0, 1]
    assert JobState.PENDING in states[states.index(JobState.RUNNING) :]
    assert final.sealed
    # Whoever requeues the finished job starts no payload any more.
    cluster.exec("ctld", ["scontrol", "requeue", str(final.job_id)], check=False)
    until(lambda: "PENDING" not in state_of(cluster, final.job_id), 60, "the requeued job ended")
    until(lambda: state_of(cluster, final.job_id) not in {"RUNNING", "COMPLETING"}, 60, "the requeued job ended")
    assert len(executions(cluster, mark)) == 2


def test_a_requeue_that_is_asked_for_here_starts_the_job_again_once(alice: SiteClient, cluster: Cluster) -> None:
    mark = fresh("asked")
    text = 'n=$(wc -l <$HOME/ran.$MARK); echo start $n; [ "$n" = 2 ] || sleep 600'
    key = submit(alice, mark, text, JobOptions(requeue=True))
    outputs: dict[int, bytes] = {}
    control, final = "", None
    for event in alice.follow(key):
        if isinstance(event, Output):
            outputs[event.start] = outputs.get(event.start, b"") + event.data
            if not control:
                record_when(alice, key, {JobState.RUNNING})
                control = alice.requeue(key, "once more")
        elif isinstance(event, StateChanged):
            final = event.record
    assert final is not None
    assert check_requeue(final, control)
    assert [(one.id, one.reason, one.outcome) for one in final.requeues] == [(control, "once more", "done")]
    assert outputs == {0: b"start 1\n", 1: b"start 2\n"}
    assert final.state is JobState.COMPLETED
    assert [start.number for start in final.starts] == [0, 1]
    assert len(executions(cluster, mark)) == 2
    with pytest.raises(NotRequeueable, match="has ended"):
        alice.requeue(key)


def state_of(cluster: Cluster, job_id: int | None) -> str:
    shown = cluster.exec("ctld", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", str(job_id)], check=False).stdout
    return shown.strip()


def test_a_cancelled_job_that_a_requeue_brings_back_ends_all_the_same(alice: SiteClient, cluster: Cluster) -> None:
    text = "trap '' TERM; echo begun; while true; do sleep 1; done"
    key = submit(alice, fresh("back"), text, JobOptions(requeue=True))
    story, requeued = Story(), False
    for event in alice.follow(key):
        if isinstance(event, StateChanged) and event.record.state is JobState.RUNNING and not requeued:
            job_id = event.record.job_id
            alice.cancel(key, "enough")
            until(lambda: "COMPLETING" in slurm_flags(cluster, job_id), 20, "it is being cancelled")  # noqa: B023
            cluster.exec("ctld", ["scontrol", "requeue", str(job_id)], check=False)
            requeued = True
        if isinstance(event, StateChanged):
            story.states.append(event.record.state)
            story.final = event.record
    assert requeued
    assert story.record.state is JobState.CANCELLED
    until(lambda: state_of(cluster, story.record.job_id) in {"CANCELLED", ""}, 30, "Slurm has it cancelled")


def slurm_flags(cluster: Cluster, job_id: int | None) -> list[str]:
    shown = cluster.exec("ctld", ["scontrol", "show", "job", str(job_id), "--json"], check=False).stdout
    jobs = json.loads(shown)["jobs"] if shown.strip().startswith("{") else []
    return [str(word) for word in jobs[0]["job_state"]] if jobs else []


def test_a_start_on_a_node_that_was_cut_off_ends_when_it_sees_its_successor(
    alice: SiteClient, cluster: Cluster
) -> None:
    text = 'n=$(wc -l <$HOME/ran.$MARK); echo start $n; [ "$n" = 2 ] || exec sleep 601'
    mark = fresh("cutoff")
    key = submit(alice, mark, text, JobOptions(requeue=True))
    outputs: dict[int, bytes] = {}
    final: Record | None = None
    cut: str | None = None
    try:
        for event in alice.follow(key):
            if isinstance(event, Output):
                outputs[event.start] = outputs.get(event.start, b"") + event.data
                if cut is None:
                    cut = executions(cluster, mark)[0].split()[1]
                    assert sleeping(cluster, cut)
                    cluster.disconnect(cut)
            elif isinstance(event, StateChanged):
                final = event.record
        assert cut is not None
        assert final is not None
        assert final.state is JobState.COMPLETED
        assert outputs == {0: b"start 1\n", 1: b"start 2\n"}
        node = cut
        # It sees through the shared spool alone that it has a successor.
        until(lambda: not sleeping(cluster, node), 40, "the payload on the node that was cut off ended")
    finally:
        if cut is not None:
            cluster.connect(cut)
            cluster.wait_idle()
    assert len(executions(cluster, mark)) == 2


def sleeping(cluster: Cluster, node: str) -> bool:
    return cluster.exec(node, ["pgrep", "-f", "sleep 601"], check=False).stdout.strip() != ""


@contextmanager
def changed_conf(cluster: Cluster, **settings: str | None) -> Iterator[None]:
    """Run the controller with other settings for a while; None leaves one out."""
    before = cluster.exec("ctld", ["cat", "/etc/slurm/slurm.conf"]).stdout
    text = before
    for name, value in settings.items():
        text, count = re.subn(rf"(?m)^{name}=.*$", "" if value is None else f"{name}={value}", text)
        assert count == 1, name
    hosts = ("ctld", "login")
    try:
        for host in hosts:
            cluster.copy_to(host, text.encode(), "/etc/slurm/slurm.conf")
        cluster.daemon("restart", "slurmctld")
        yield
    finally:
        for host in hosts:
            cluster.copy_to(host, before.encode(), "/etc/slurm/slurm.conf")
        cluster.daemon("restart", "slurmctld")


def forget_while_away(alice: SiteClient, agent: AgentProcess, cluster: Cluster, mark: str, text: str) -> str:
    """Run a job whose end no agent sees, until the controller has forgotten it."""
    key = submit(alice, mark, f"echo begun; sleep 3; {text}")
    for event in alice.follow(key):
        if isinstance(event, Output):
            agent.kill()
            break
    record = alice.record(key)
    assert record is not None
    until(lambda: state_of(cluster, record.job_id) == "", 90, "the controller has forgotten the job")
    return key


def test_with_accounting_frozen_a_forgotten_job_waits_and_is_told_rightly_afterwards(
    alice: SiteClient, alice_agent: AgentProcess, cluster: Cluster
) -> None:
    with changed_conf(cluster, MinJobAge="2"):
        key = forget_while_away(alice, alice_agent, cluster, fresh("purged"), "echo done; exit 7")
        cluster.daemon("freeze", "slurmdbd")
        try:
            alice_agent.start()
            until(lambda: "accounting" in (reason_of(alice, key) or ""), 60, "the job says what it waits for")
            record = alice.record(key)
            assert record is not None
            assert not record.state.is_final
        finally:
            cluster.daemon("thaw", "slurmdbd")
        story = follow(alice, key)
        assert (story.record.state, story.record.exit_code) == (JobState.FAILED, 7)
        assert story.stdout == "begun\ndone\n"


def reason_of(client: SiteClient, key: str) -> str | None:
    record = client.record(key)
    return record.reason if record is not None else None


@pytest.mark.timeout(600)
def test_on_a_site_without_accounting_a_forgotten_job_is_lost_and_others_are_well(
    alice: SiteClient, alice_agent: AgentProcess, cluster: Cluster
) -> None:
    with changed_conf(
        cluster, MinJobAge="2", AccountingStorageType=None, AccountingStorageEnforce=None, AccountingStorageTRES=None
    ):
        alice_agent.stop()  # its scheduler's process has read the other slurm.conf
        alice_agent.start()
        story = run(alice, "echo", "well")
        assert (story.record.state, story.stdout) == (JobState.COMPLETED, "well\n")
        key = forget_while_away(alice, alice_agent, cluster, fresh("nobody"), "echo done")
        alice_agent.start()
        story = follow(alice, key)
        assert story.record.state is JobState.LOST, "the runner's own word is no proof"
        assert "exit code 0" in (story.record.reason or "")
        assert story.stdout == "begun\ndone\n"
    alice_agent.stop()
    alice_agent.start()
    assert run(alice, "true").record.state is JobState.COMPLETED
