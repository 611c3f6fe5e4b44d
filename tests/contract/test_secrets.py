"""Secret variables: the job gets them, and their bytes are nowhere else."""

from __future__ import annotations

import secrets
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.agent_site import SITE, shell
from contract.authority_site import Guarded, guarded_site, holders, signed, submission
from contract.bus_site import wait_until
from slurmbus.events import Output
from slurmbus_protocol.messages import CommandPlan, JobOptions, JobSpec, TaskSpec
from slurmbus_protocol.sealing import new_seal_key, seal, seal_public
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_site(tmp_path_factory.mktemp("guarded")) as site:
        yield site


@pytest.fixture
def value() -> str:
    return f"s3cret-{secrets.token_hex(16)}"


def stdout(guarded: Guarded, key: str, task: int = 0) -> str:
    with guarded.client.follow(key, task=task) as events:
        return b"".join(e.data for e in events if isinstance(e, Output) and e.stream is Stream.STDOUT).decode()


def hold(go: Path, say: str = 'test -n "$TOKEN" && echo has it') -> JobSpec:
    return shell(f"{say}; for _ in $(seq 1200); do test -e {go} && exit 0; sleep 0.05; done; exit 1")


def test_the_job_has_it_and_nothing_else_does(guarded: Guarded, tmp_path: Path, value: str) -> None:
    """Searched while the job runs and afterwards: the bus's store, the spool, records, logs, command lines."""
    go = tmp_path / "go"
    key = guarded.client.submit(hold(go), secret_env={"TOKEN": value})
    guarded.wait_for_state(key, JobState.RUNNING)
    given = guarded.spool / "jobs" / f"{key}.0" / "0.secrets"
    wait_until(lambda: given.exists() and given.stat().st_size == 0, "the file to be emptied")
    assert stat.S_IMODE(given.stat().st_mode) == 0o600
    assert holders(guarded.folder, value) == []
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(value.encode() in line for line in lines)
    go.touch()
    assert stdout(guarded, key) == "has it\n"
    guarded.wait_for_state(key, JobState.COMPLETED)
    assert holders(guarded.folder, value) == []


def test_a_job_that_never_starts_leaves_nothing_behind(guarded: Guarded, value: str) -> None:
    job = JobSpec(name="lost", plan=CommandPlan(argv=("/no/such/program",)))
    key = guarded.client.submit(job, secret_env={"TOKEN": value})
    guarded.wait_for_state(key, JobState.FAILED)
    assert holders(guarded.folder, value) == []


def test_the_tasks_of_an_array_all_have_it(guarded: Guarded, value: str) -> None:
    tasks = (TaskSpec(index=0), TaskSpec(index=1))
    job = JobSpec(name="tasks", plan=CommandPlan(argv=("sh", "-c", "echo ${#TOKEN}")), tasks=tasks)
    key = guarded.client.submit(job, secret_env={"TOKEN": value})
    assert [stdout(guarded, key, task) for task in (0, 1)] == [f"{len(value)}\n"] * 2
    wait_until(lambda: holders(guarded.folder, value) == [], "nothing to be left")


def test_an_agent_that_is_killed_does_not_put_it_there_again(guarded: Guarded, tmp_path: Path, value: str) -> None:
    """The empty file says that the start has it; what follows a requeue is tested with Slurm."""
    go = tmp_path / "go"
    job = hold(go, 'test -n "$TOKEN"')
    key = guarded.client.submit(
        JobSpec(name="again", plan=job.plan, options=JobOptions(requeue=True)), secret_env={"TOKEN": value}
    )
    folder = guarded.spool / "jobs" / f"{key}.0"
    guarded.wait_for_state(key, JobState.RUNNING)
    first = folder / "0.secrets"
    wait_until(lambda: first.exists() and first.stat().st_size == 0, "the file to be emptied")
    process = guarded.agent.process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    go.touch()
    guarded.agent.start()
    guarded.agent.wait_until_it_serves()
    guarded.wait_for_state(key, JobState.COMPLETED)
    assert not (folder / "1.secrets").exists()
    assert holders(guarded.folder, value) == []


def test_a_replaced_key_is_named(guarded: Guarded, value: str) -> None:
    key = new_ulid()
    about = {"site": SITE, "key": key, "signer": guarded.signer.public}
    sealed = seal({"TOKEN": value}, seal_public(new_seal_key()), **about)
    message = submission(JobSpec(name="late", plan=CommandPlan(argv=("true",)), sealed=sealed), key=key)
    guarded.publish(*signed(message, guarded.signer))
    record = guarded.wait_for_state(key, JobState.REJECTED)
    assert record.error_code == "secret-unreadable"
    assert "replaced" in (record.reason or "")
    assert "slurmbus up" in (record.hint or "")


def test_nobody_can_have_another_s_secret_by_putting_it_into_a_request_of_his_own(guarded: Guarded, value: str) -> None:
    """The sealed bytes stand in the request on the bus for everybody on the bus to read, but not to use."""
    theirs = new_ulid()
    public = guarded.site.home.site(SITE).seal_public
    assert public is not None
    sealed = seal({"TOKEN": value}, public, site=SITE, key=theirs, signer="ab" * 32)
    for key in (theirs, new_ulid()):
        job = JobSpec(name="thief", plan=CommandPlan(argv=("sh", "-c", "echo $TOKEN")), sealed=sealed)
        guarded.publish(*signed(submission(job, key=key), guarded.signer))
        record = guarded.wait_for_state(key, JobState.REJECTED)
        assert "another job or by somebody else" in (record.reason or "")
    assert holders(guarded.folder, value) == []
