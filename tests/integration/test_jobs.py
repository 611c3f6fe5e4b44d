"""One job at a time on a real Slurm cluster: what goes well, and every way of going wrong."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from integration.jobs import follow, run, spec
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.events import StateChanged
from slurmbus.home import Home
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import JobOptions, JobSpec
from slurmbus_protocol.states import JobState


def test_a_job_runs_and_everything_it_says_comes_back(alice: SiteClient, cluster: Cluster) -> None:
    story = run(
        alice,
        "bash",
        "-c",
        'echo "hello from $SLURMD_NODENAME as $USER"; echo oops >&2',
        options=JobOptions(mem_per_node_mib=100),
    )
    record = story.record
    assert record.state is JobState.COMPLETED
    assert story.stdout == f"hello from {record.node_list} as alice\n"
    assert story.stderr == "oops\n"
    assert story.states[0] is JobState.ACCEPTED
    assert story.states[-1] is JobState.COMPLETED
    assert record.exit_code == 0
    assert record.job_id is not None
    row = cluster.accounting(record.job_id)[0]
    assert row["JobName"] == f"test.{record.key}"
    assert row["State"] == "COMPLETED"
    assert record.partition == "main"
    assert record.submit_time is not None
    assert record.end_time is not None


def test_accounting_follows_the_final_state(alice: SiteClient) -> None:
    key = alice.submit(
        spec("python3", "-c", "import time; x = bytearray(60 << 20)\nwhile time.process_time() < 3: pass")
    )
    follow(alice, key)
    accounting = alice.wait_for_accounting(key, 30).accounting
    assert accounting is not None
    assert accounting.state == "COMPLETED"
    assert accounting.alloc_cpus >= 1
    assert accounting.cpu_seconds > 0
    assert accounting.max_rss is not None


def test_a_job_starts_from_a_login_shell_and_not_from_the_agents_environment(alice: SiteClient) -> None:
    story = run(
        alice,
        "bash",
        "-c",
        'echo "$HOME|$YEAR|${XDG_DATA_HOME-unset}"; shopt -q login_shell; pwd',
        env={"YEAR": "2026"},
    )
    first, folder = story.stdout.splitlines()
    assert first == "/home/alice|2026|unset"
    assert folder == story.record.work_dir


@pytest.mark.parametrize(("code", "state"), [(0, JobState.COMPLETED), (3, JobState.FAILED), (255, JobState.FAILED)])
def test_exit_codes(alice: SiteClient, code: int, state: JobState) -> None:
    record = run(alice, "bash", "-c", f"exit {code}").record
    assert (record.state, record.exit_code) == (state, code)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGUSR1])
def test_signals(alice: SiteClient, number: signal.Signals) -> None:
    record = run(alice, "bash", "-c", f"kill -{int(number)} $$").record
    assert (record.state, record.signal) == (JobState.FAILED, number)


def test_an_out_of_memory_kill_is_told_as_such(alice: SiteClient) -> None:
    hog = "x = []\nwhile True: x.append(bytearray(10_000_000))"
    story = run(alice, "python3", "-c", hog, options=JobOptions(mem_per_node_mib=80))
    assert story.record.state is JobState.OUT_OF_MEMORY


def test_an_unknown_partition_is_refused_in_slurms_own_words(alice: SiteClient) -> None:
    record = run(alice, "true", options=JobOptions(partition="nowhere")).record
    assert record.state is JobState.REJECTED
    assert "partition" in (record.reason or "").lower()
    assert "main" in (record.hint or "")


def test_impossible_memory_is_refused(alice: SiteClient) -> None:
    record = run(alice, "true", options=JobOptions(mem_per_node_mib=10_000_000)).record
    assert record.state is JobState.REJECTED
    assert record.reason


def test_a_command_that_isnt_there(alice: SiteClient) -> None:
    record = run(alice, "no-such-command").record
    assert (record.state, record.exit_code) == (JobState.FAILED, 127)
    assert "no-such-command" in (record.starts[-1].error or "")


def test_a_working_directory_that_isnt_there(alice: SiteClient) -> None:
    record = run(alice, "true", cwd="/nowhere/at/all").record
    assert record.state is JobState.FAILED
    assert "/nowhere/at/all" in (record.starts[-1].error or "")


def test_files_travel_and_outputs_come_back(alice: SiteClient, tmp_path: Path) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(bytes(range(256)) * 20_000)  # several chunks
    upload = alice.upload(source, "data/in.bin")
    story = run(
        alice,
        "bash",
        "-c",
        "mkdir out; cp data/in.bin out/copy.bin; echo 1 > a.txt; echo 2 > b.txt; ls -l data >&2",
        files=(upload,),
        outputs=("out/copy.bin", "*.txt", "missing.png"),
        work_base="/home/alice/dagster_runs",
    )
    record = story.record
    assert record.state is JobState.COMPLETED
    assert (record.work_dir or "").startswith("/home/alice/dagster_runs/")
    found = {output.path: output for output in record.outputs}
    assert set(found) == {"out/copy.bin", "a.txt", "b.txt"}
    assert "missing.png" in (record.outputs_error or "")
    copy = alice.download(found["out/copy.bin"], tmp_path / "copy.bin")
    assert copy.read_bytes() == source.read_bytes()


def test_outputs_beyond_the_limit_stay_where_they_are_and_that_is_said(alice: SiteClient) -> None:
    record = run(alice, "bash", "-c", "head -c 2000 /dev/zero > big", outputs=("big",), outputs_limit=1000).record
    assert record.state is JobState.COMPLETED
    assert record.outputs == ()
    assert "big" in (record.outputs_error or "")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_file_that_would_leave_the_working_directory_is_refused(alice: SiteClient, path: str) -> None:
    ref = alice.upload_bytes(b"x", "x")
    job = spec("true")
    hostile = JobSpec(name=job.name, plan=job.plan, files=(type(ref)(path=path, sha256=ref.sha256, size=ref.size),))
    record = follow(alice, alice.submit(hostile)).record
    assert record.state is JobState.REJECTED
    assert "files" in (record.reason or "")


def test_a_gpu_job_gets_its_gpu(alice: SiteClient) -> None:
    story = run(
        alice, "bash", "-c", "echo $CUDA_VISIBLE_DEVICES", options=JobOptions(partition="gpu", gpus_per_node="1")
    )
    assert story.record.state is JobState.COMPLETED
    assert story.stdout.strip().isdigit()


def test_a_cancel_ends_a_running_job(alice: SiteClient, cluster: Cluster) -> None:
    key = alice.submit(spec("sleep", "600"))
    for event in alice.follow(key):
        if isinstance(event, StateChanged) and event.record.state is JobState.RUNNING:
            alice.cancel(key, "enough")
        last = event
    record = follow(alice, key).record
    assert record.state is JobState.CANCELLED, last
    assert record.cancel is not None
    assert record.job_id is not None
    assert cluster.wait_job(record.job_id, ["CANCELLED"], 30)


def test_a_cancel_before_the_submit_is_kept(alice: SiteClient) -> None:
    from slurmbus_protocol.subjects import new_ulid

    key = new_ulid()
    alice.cancel(key, "never mind")
    deadline = time.monotonic() + 20
    while alice.record(key) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    alice.submit(spec("true"), key=key)
    record = follow(alice, key).record
    assert (record.state, record.job_id) == (JobState.CANCELLED, None)


def test_the_same_request_sent_twice_is_one_job(alice: SiteClient) -> None:
    job = spec("bash", "-c", "echo once >> ~/once.$SLURM_JOB_NAME; cat ~/once.$SLURM_JOB_NAME")
    key = alice.submit(job)
    assert alice.submit(job, key=key) == key
    story = follow(alice, key)
    assert alice.submit(job, key=key) == key
    assert story.stdout == "once\n"
    assert story.record.submits == 1


def test_two_sites_dont_see_each_others_jobs(alice: SiteClient, bob: SiteClient) -> None:
    hers = alice.submit(spec("id", "-un"))
    his = bob.submit(spec("id", "-un"))
    assert follow(alice, hers).stdout == "alice\n"
    assert follow(bob, his).stdout == "bob\n"
    assert bob.record(hers) is None
    assert {record.key for record in alice.records()}.isdisjoint({record.key for record in bob.records()})


def test_bytes_of_all_kinds_arrive_as_they_were(alice: SiteClient) -> None:
    writer = (
        "import os, random as r; r.seed(7); os.write(1, r.randbytes(3_000_000)); os.write(2, bytes(range(256)) * 999)"
    )
    story = run(alice, "python3", "-c", writer)
    import random

    random.seed(7)
    from slurmbus_protocol.subjects import Stream

    assert story.bytes[Stream.STDOUT] == random.randbytes(3_000_000)
    assert story.bytes[Stream.STDERR] == bytes(range(256)) * 999


def test_lines_at_full_speed_arrive_once_and_in_order(alice: SiteClient) -> None:
    story = run(alice, "seq", "200000")
    assert story.stdout == "".join(f"{number}\n" for number in range(1, 200_001))


def test_output_is_live(alice: SiteClient) -> None:
    from slurmbus.events import Output

    key = alice.submit(
        spec("bash", "-c", "echo first; while [ ! -e ~/go-on ]; do sleep 0.1; done; rm ~/go-on; echo last")
    )
    heard = b""
    for event in alice.follow(key):
        if isinstance(event, Output):
            heard += event.data
            if heard == b"first\n":  # the job can only end when this is heard while it runs
                follow(alice, alice.submit(spec("touch", "/home/alice/go-on")))
    assert heard == b"first\nlast\n"


def test_the_spool_alone_is_enough_when_the_link_is_cut(cluster: Cluster, home: Home) -> None:
    site = "cluster-unlinked"
    home.add_site(site, scheduler="native", slurm_conf="/etc/slurm/slurm.conf", link_host="192.0.2.1")
    with AgentProcess(cluster, site, home.bundle_path(site)):
        client = SiteClient(Connection.get(ConnectionSettings.of_site(home, site)), site)
        story = run(client, "bash", "-c", "for i in 1 2 3; do echo $i; sleep 1; done; exit 4")
        assert story.stdout == "1\n2\n3\n"
        assert (story.record.state, story.record.exit_code) == (JobState.FAILED, 4)


def test_a_full_disk_in_the_spool_is_a_readable_failure(cluster: Cluster, home: Home) -> None:
    site = "cluster-full"
    spool = "/home/alice/full"
    cluster.exec("login", ["mkdir", "-p", spool], user="alice")
    for host in ("login",):
        cluster.exec(host, ["mount", "-t", "tmpfs", "-o", "size=1m,uid=1001,gid=1001,mode=700", "tmpfs", spool])
    try:
        home.add_site(site, scheduler="native", slurm_conf="/etc/slurm/slurm.conf", spool=spool)
        with AgentProcess(cluster, site, home.bundle_path(site)):
            client = SiteClient(Connection.get(ConnectionSettings.of_site(home, site)), site)
            ref = client.upload_bytes(b"x" * 3_000_000, "big.bin")
            record = run(client, "true", files=(ref,)).record
            assert record.state is JobState.REJECTED
            assert record.error_code == "spool-full"
            assert "left" in (record.reason or "") or "full" in (record.reason or "")
    finally:
        cluster.exec("login", ["umount", "-l", spool])
