"""The command against a real server and a scripted agent: exit codes, live output, JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.bus_site import JOB, SITE, BusSite, bus_site
from slurmbus.cli import main
from slurmbus.commands import follow
from slurmbus.testing import ScriptedAgent, ended_start
from slurmbus_protocol import blobs
from slurmbus_protocol.messages import Cancel, FileRef, JobOptions, Requeue, RequeueAsked, Submit
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream, new_ulid

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusSite]:
    with bus_site(tmp_path_factory.mktemp("bus")) as site:
        yield site


@pytest.fixture
def site(module_site: BusSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BusSite:
    monkeypatch.setenv("SLURMBUS_HOME", str(module_site.home.path))
    monkeypatch.delenv("SLURMBUS_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return module_site


def with_agent(site: BusSite, scenario: Callable[[ScriptedAgent, Submit], Awaitable[None]], *arguments: str) -> int:
    """Run ``slurmbus submit`` while a scripted agent takes the job."""

    async def serve(agent: ScriptedAgent) -> None:
        request = await agent.request()
        assert isinstance(request, Submit)
        await scenario(agent, request)

    thread = threading.Thread(target=site.play, args=(serve,))
    thread.start()
    try:
        return main(["submit", *arguments])
    finally:
        thread.join()


async def complete(agent: ScriptedAgent, request: Submit) -> None:
    await agent.record(request.key, JobState.RUNNING, job_id=17, node_list="c1")
    await agent.chunk(request.key, Stream.STDOUT, 0, b"to stdout\n")
    await agent.chunk(request.key, Stream.STDERR, 0, b"to stderr\n")
    start = ended_start(sizes={Stream.STDOUT: 10, Stream.STDERR: 10})
    await agent.record(request.key, JobState.COMPLETED, job_id=17, exit_code=0, starts=(start,))


def test_output_comes_as_it_is_and_states_on_stderr(site: BusSite, capfd: Capture) -> None:
    seen: list[Submit] = []

    async def scenario(agent: ScriptedAgent, request: Submit) -> None:
        seen.append(request)
        await complete(agent, request)

    options = (
        "--partition main --time 00:10:00 --cpus 2 --mem 1G --gpus a100:1 --nodes 2 --ntasks 4 --account acc --qos q"
    )
    assert with_agent(site, scenario, *options.split(), "--env", "A=b", "--name", "n", "--", "prog", "--flag") == 0
    said = capfd.readouterr()
    assert said.out == "to stdout\n"
    assert "to stderr\n" in said.err
    assert "job 17: RUNNING on c1" in said.err
    job = seen[0].job
    assert (job.name, job.plan.argv, job.env) == ("n", ("prog", "--flag"), {"A": "b"})
    asked = job.options
    assert (asked.partition, asked.account, asked.qos, asked.gpus_per_node) == ("main", "acc", "q", "a100:1")
    assert (asked.time_limit_minutes, asked.cpus_per_task, asked.mem_per_node_mib) == (10, 2, 1024)
    assert (asked.nodes, asked.ntasks) == (2, 4)


def test_any_option_of_sbatch_can_be_given(site: BusSite, capfd: Capture) -> None:
    seen: list[Submit] = []

    async def scenario(agent: ScriptedAgent, request: Submit) -> None:
        seen.append(request)
        await complete(agent, request)

    words = ("--option", "time-min=10", "--option", "contiguous", "--option", "extra-node-info=2:4", "--nodes", "2-4")
    assert with_agent(site, scenario, *words, "--", "true") == 0
    assert seen[0].job.options == JobOptions(
        time_min_minutes=10, contiguous=True, sockets_per_node=2, cores_per_socket=4, nodes=2, nodes_max=4
    )
    assert main(["submit", "--option", "partiton=main", "--", "true"]) != 0
    assert "did you mean 'partition'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (JobState.COMPLETED, 0),
        (JobState.FAILED, 1),
        (JobState.CANCELLED, 1),
        (JobState.LOST, 1),
        (JobState.REJECTED, 4),
    ],
)
def test_the_exit_code_tells_how_it_ended(site: BusSite, state: JobState, code: int, capfd: Capture) -> None:
    async def scenario(agent: ScriptedAgent, request: Submit) -> None:
        await agent.record(request.key, state, reason="because", hint="do that")

    assert with_agent(site, scenario, "--", "true") == code
    said = capfd.readouterr().err
    assert "because" in said
    assert "do that" in said


def test_files_go_and_outputs_come_back(site: BusSite, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "in.txt").write_text("input")

    async def scenario(agent: ScriptedAgent, request: Submit) -> None:
        (ref,) = request.job.files
        assert ref.path == "data/renamed.txt"
        assert request.job.outputs == ("plots/a.txt",)
        data = b"".join([piece async for piece in blobs.fetch(agent.bus, ref.sha256, ref.size)])
        digest = await blobs.put_bytes(agent.bus, data.upper())
        output = FileRef(path="plots/a.txt", sha256=digest, size=5)
        await agent.record(request.key, JobState.COMPLETED, starts=(ended_start(),), outputs=(output,))

    assert with_agent(site, scenario, "-f", "in.txt:data/renamed.txt", "-o", "plots/a.txt", "--", "true") == 0
    assert (tmp_path / "plots" / "a.txt").read_text() == "INPUT"
    assert "wrote plots/a.txt" in capfd.readouterr().err


def test_an_output_that_leaves_the_folder_is_refused(site: BusSite, tmp_path: Path) -> None:
    async def scenario(agent: ScriptedAgent, request: Submit) -> None:
        digest = await blobs.put_bytes(agent.bus, b"evil")
        output = FileRef(path="../evil", sha256=digest, size=4)
        await agent.record(request.key, JobState.COMPLETED, starts=(ended_start(),), outputs=(output,))

    assert with_agent(site, scenario, "--", "true") == 2
    assert not (tmp_path.parent / "evil").exists()


def test_a_missing_output_is_a_failure(site: BusSite, capfd: Capture) -> None:
    async def scenario(agent: ScriptedAgent, request: Submit) -> None:
        await agent.record(request.key, JobState.COMPLETED, starts=(ended_start(),), outputs_error="no plot.png")

    assert with_agent(site, scenario, "-o", "plot.png", "--", "true") == 1
    assert "no plot.png" in capfd.readouterr().err


def test_json_lines(site: BusSite, capfd: Capture) -> None:
    async def scenario(agent: ScriptedAgent, request: Submit) -> None:
        await agent.chunk(request.key, Stream.STDERR, 0, b"\xff")
        await agent.chunk(request.key, Stream.STDOUT, 0, b"to stdout\n")
        start = ended_start(sizes={Stream.STDOUT: 10, Stream.STDERR: 1})
        await agent.record(request.key, JobState.FAILED, exit_code=3, starts=(start,))

    assert with_agent(site, scenario, "--json", "--", "true") == 1
    said = capfd.readouterr()
    assert said.err == ""
    lines: list[dict[str, Any]] = [json.loads(line) for line in said.out.splitlines()]
    assert {line["event"] for line in lines} == {"submitted", "state", "output", "finished"}
    assert lines[-1]["record"]["exit_code"] == 3
    outputs = {line["stream"]: line for line in lines if line["event"] == "output"}
    assert outputs["stdout"]["text"] == "to stdout\n"
    assert outputs["stderr"]["base64"] == "/w=="


def test_jobs_logs_and_cancel_by_key_prefix_and_id(
    site: BusSite, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = site.client.submit(JOB)

    async def scenario(agent: ScriptedAgent) -> None:
        while (await agent.request()).key != key:
            pass
        await agent.record(key, JobState.RUNNING, job_id=4711, name="longer")
        await agent.chunk(key, Stream.STDOUT, 0, b"out\n")
        await agent.chunk(key, Stream.STDERR, 0, b"err\n")
        await agent.heartbeat()

    site.play(scenario)
    assert main(["jobs", "--json"]) == 0
    listed = {job["key"]: job for job in json.loads(capfd.readouterr().out)}
    assert listed[key]["job_id"] == 4711
    assert main(["jobs", "--site", SITE]) == 0
    assert "4711\tlonger\tRUNNING" in capfd.readouterr().out
    for name in (key, key[:-1].lower(), "4711"):
        assert main(["logs", name]) == 0
        assert capfd.readouterr() == ("out\n", "err\n")
    assert main(["logs", "--stderr", key]) == 0
    assert capfd.readouterr() == ("err\n", "")
    assert main(["logs", "0"]) == 2
    assert "fits" in capfd.readouterr().err
    assert main(["logs", "no-such-job"]) == 2
    monkeypatch.setattr(follow, "ACCEPT_PATIENCE", 0.2)
    assert main(["cancel", "--reason", "enough", "4711"]) == 0
    assert "takes it as soon as it can" in capfd.readouterr().err

    async def end(agent: ScriptedAgent) -> None:
        request = await agent.request()
        assert isinstance(request, Cancel)
        assert (request.key, request.reason) == (key, "enough")
        start = ended_start(sizes={Stream.STDOUT: 4, Stream.STDERR: 4})
        await agent.record(key, JobState.CANCELLED, job_id=4711, starts=(start,))

    site.play(end)
    capfd.readouterr()
    assert main(["logs", "-f", "4711"]) == 1
    said = capfd.readouterr()
    assert said.out == "out\n"
    assert "CANCELLED" in said.err
    assert main(["cancel", "4711"]) == 0
    assert "already ended" in capfd.readouterr().err


def test_requeue_tells_what_came_of_it(site: BusSite, capfd: Capture) -> None:
    key = site.client.submit(JOB)

    async def answer(agent: ScriptedAgent, outcome: str) -> int:
        asking = asyncio.create_task(asyncio.to_thread(main, ["requeue", "--reason", "again", key]))
        while not isinstance(request := await agent.request(), Requeue):
            pass
        assert (request.key, request.reason, request.task) == (key, "again", None)
        noted = RequeueAsked(id=request.id, at=1.0, submitter="me", outcome=outcome, message="because")
        await agent.record(key, JobState.RUNNING, job_id=4712, requeue=True, requeues=(noted,))
        return await asking

    async def scenario(agent: ScriptedAgent) -> None:
        await agent.heartbeat(capabilities=())
        await agent.record(key, JobState.RUNNING, job_id=4712, requeue=True)
        assert await asyncio.to_thread(main, ["requeue", key]) == 2
        assert "doesn't know 'requeue'" in capfd.readouterr().err
        await agent.heartbeat()
        assert await answer(agent, "done") == 0
        assert "goes back to the queue" in capfd.readouterr().err
        assert await answer(agent, "refused") == 4
        assert "wasn't requeued: because" in capfd.readouterr().err
        assert await answer(agent, "unknown") == 3
        assert "isn't known" in capfd.readouterr().err
        start = ended_start(sizes={})
        await agent.record(key, JobState.COMPLETED, job_id=4712, starts=(start,))
        assert await asyncio.to_thread(main, ["requeue", key]) == 4
        assert "has ended" in capfd.readouterr().err

    site.play(scenario)


def test_logs_of_an_ended_job_come_from_the_spool_when_the_bus_has_none(site: BusSite, capfd: Capture) -> None:
    """As on a bus that started anew."""
    key = new_ulid()

    async def serve(agent: ScriptedAgent) -> None:
        agent.spool[key, 0, Stream.STDOUT] = b"from the spool\n"
        await agent.record(key, JobState.COMPLETED, starts=(ended_start(sizes={Stream.STDOUT: 15}),))
        assert await asyncio.to_thread(main, ["logs", key]) == 0

    site.play(serve)
    assert capfd.readouterr().out == "from the spool\n"


def test_logs_wait_for_the_record_of_a_job_that_is_expected(site: BusSite, capfd: Capture) -> None:
    """Its request is on the bus; or the bus is younger than the job, and the agent brings the record back."""
    submitted = site.client.submit(JOB)
    from_an_older_bus = f"01JD{submitted[4:]}"

    async def serve(agent: ScriptedAgent) -> None:
        for key in (submitted, from_an_older_bus):
            showing = asyncio.create_task(asyncio.to_thread(main, ["logs", "-f", key]))
            await asyncio.sleep(0)
            await agent.chunk(key, Stream.STDOUT, 0, b"out\n")
            await agent.record(key, JobState.COMPLETED, starts=(ended_start(sizes={Stream.STDOUT: 4}),))
            assert await showing == 0

    site.play(serve)
    assert capfd.readouterr().out == "out\nout\n"
    assert main(["logs", "-f", new_ulid()]) == 2
    assert main(["logs", submitted[:-1] + ("0" if submitted[-1] != "0" else "1")]) == 2


def test_sites_show_how_the_agents_are(site: BusSite, capfd: Capture) -> None:
    async def beat(agent: ScriptedAgent) -> None:
        await agent.heartbeat(host="login1", alarms=("disk is full",))

    site.play(beat)
    assert main(["sites"]) == 0
    said = capfd.readouterr().out
    assert "running (login1)" in said
    assert "disk is full" in said
    assert main(["sites", "--json"]) == 0
    (described,) = json.loads(capfd.readouterr().out)
    assert described["bus_reachable"]
    assert described["agents"][0]["host"] == "login1"


def test_no_follow_prints_the_key(site: BusSite, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "ACCEPT_PATIENCE", 0.2)
    assert main(["submit", "--no-follow", "true"]) == 0
    key = capfd.readouterr().out.strip()
    assert main(["cancel", key]) == 0  # no agent has taken it yet; the cancel waits for one
    assert main(["submit", "--no-follow", "--json", "true"]) == 0
    assert json.loads(capfd.readouterr().out)["site"] == SITE


def test_no_follow_tells_what_the_agent_says(site: BusSite, capfd: Capture) -> None:
    async def accept(agent: ScriptedAgent, request: Submit) -> None:
        await agent.record(request.key, JobState.ACCEPTED)

    async def reject(agent: ScriptedAgent, request: Submit) -> None:
        await agent.record(request.key, JobState.REJECTED, reason="no such partition", hint="see sinfo")

    async def drain(agent: ScriptedAgent) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await agent.request()

    site.play(drain)
    assert with_agent(site, accept, "--no-follow", "--", "true") == 0
    assert capfd.readouterr().err == ""
    assert with_agent(site, reject, "--no-follow", "--", "true") == 4
    said = capfd.readouterr()
    assert "REJECTED, no such partition" in said.err
    assert "see sinfo" in said.err
    assert len(said.out.strip()) == 26


def test_no_follow_tells_why_nobody_takes_the_job(
    site: BusSite, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "ACCEPT_PATIENCE", 2.0)

    async def full(agent: ScriptedAgent) -> None:
        await agent.heartbeat(alarms=("the bus takes no more records",))

    async def gone(agent: ScriptedAgent) -> None:
        await agent.heartbeat(lease_seconds=0.0)

    site.play(full)
    assert main(["submit", "--no-follow", "true"]) == 0
    said = capfd.readouterr().err
    assert "the agent of site scripted reports: the bus takes no more records" in said
    assert "the request is kept on the bus" in said
    site.play(gone)
    assert main(["submit", "--no-follow", "true"]) == 0
    said = capfd.readouterr().err
    assert "has been silent for" in said
    assert "the request is kept on the bus" in said


def test_ctrl_c_detaches_and_says_how_to_go_on(site: BusSite) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from slurmbus.cli import main; sys.exit(main())", "submit", "sleep", "60"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    key = process.stderr.readline().split()[1]

    async def run(agent: ScriptedAgent) -> None:
        while (await agent.request()).key != key:
            pass
        await agent.record(key, JobState.RUNNING, job_id=1)

    site.play(run)
    assert "RUNNING" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(30) == 130
    assert f"slurmbus logs -f --site {SITE} {key}" in said
    assert f"slurmbus cancel --site {SITE} {key}" in said
    assert "Traceback" not in said
    process.stderr.close()


def test_unreachable(site: BusSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(tmp_path / "other"))
    assert main(["sites", "add", "away", "--url", "nats://127.0.0.1:1"]) == 0
    assert main(["submit", "true"]) == 3
    assert "no connection to nats://127.0.0.1:1" in capfd.readouterr().err
    assert main(["sites"]) == 0
    assert "unreachable" in capfd.readouterr().out


def test_bus_run_serves_until_it_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(tmp_path / "home"))
    script = "import sys; from slurmbus.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", script, "bus", "run"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "listens on tls://127.0.0.1:" in process.stderr.readline()
    assert main(["sites", "add", "a"]) == 0
    assert main(["sites"]) == 0
    assert "never seen" in capfd.readouterr().out
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stderr.close()


def test_main_runs_within_asyncio_as_well(site: BusSite) -> None:
    """The connection has a loop of its own: a caller's loop is no matter."""

    async def call() -> int:
        return main(["jobs", "--json"])

    assert asyncio.run(call()) == 0
