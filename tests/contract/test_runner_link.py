"""The runner and the agent's end of the link together: every byte arrives once, whatever happens to the link."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster_pipes
import msgspec
import pytest

from runner_lab import KEYS, SECRET, Lab, Sink, lab, payload_bytes, serving, until
from slurmbus_agent import budgets
from slurmbus_agent.link import LinkServer
from slurmbus_agent.link_tls import LinkKeys
from slurmbus_agent.spool import Claim, JobDir, LinkAddress
from slurmbus_protocol.certificates import make_alone
from slurmbus_protocol.messages import Start
from slurmbus_protocol.subjects import Stream

CHATTER = """
import os, random, sys, time
r = random.Random(int(sys.argv[1]))
for i in range(400):
    size = r.choice((1, 10, 1000, 50_000))
    os.write(r.choice((1, 2)), r.randbytes(size))
    with open(sys.argv[2], "ab") as messages:
        messages.write(b"%d %s\\n" % (i, b"m" * r.choice((0, 3000))))
    time.sleep(r.choice((0, 0, 0.001, 0.01)))
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as one:
        yield one


def assert_all_arrived(sink: Sink, job: JobDir, start: int = 0) -> None:
    end = sink.ends[start]
    for stream in Stream:
        written = payload_bytes(job, start, stream)
        assert sink.of(start, stream) == written
        assert end.sizes[stream] == len(written)


class Sampled(Sink):
    """Keeps the chunks of stdout as they come, holes included."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.pieces: list[tuple[int, bytes]] = []

    async def chunk(self, _key: str, _task: int, _start: int, stream: Stream, offset: int, data: bytes) -> int:
        if stream is Stream.STDOUT:
            self.pieces.append((offset, data))
        return offset + len(data)


def memory_of(pid: int) -> int:
    """Give the bytes of memory of a process, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> list[Path]:
    """Give the open files of a process."""
    return list(Path(f"/proc/{pid}/fd").iterdir())


def test_everything_arrives(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool) as server:
            job = place.job("bash", "-c", 'echo out; echo err >&2; echo msg >>"$SLURMBUS_SPOOL/0.messages"; exit 3')
            process = place.start(job, job_id=42)
            assert await place.ended(process) == 3
            await until(lambda: not sink.connected, "the end of the connection")
            [start] = sink.hellos
            assert (start.number, start.job_id, start.node) == (0, 42, "c1")
            assert start.nonce == job.claims()[0].nonce
            assert sink.started_at[0] == sink.ends[0].started_at
            assert (sink.ends[0].exit_code, sink.ends[0].signal, sink.ends[0].error) == (3, None, None)
            assert sink.of(0, Stream.MESSAGES) == b"msg\n"
            assert_all_arrived(sink, job)
            assert job.report(0) is not None
            assert not server.dropped

    asyncio.run(scenario())


def test_the_first_bytes_and_messages_come_at_once(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool):
            fifo = place.home / "go"
            os.mkfifo(fifo)
            script = f'echo first; echo a >>"$SLURMBUS_SPOOL/0.messages"; cat {fifo}'
            job = place.job("bash", "-c", script)
            process = place.start(job)
            await until(lambda: sink.of(0, Stream.STDOUT) == b"first\n", "the first line")
            await until(lambda: sink.of(0, Stream.MESSAGES) == b"a\n", "the message")
            assert 0 in sink.started_at
            for number in range(5):
                with (job.path / "0.messages").open("ab") as messages:
                    messages.write(b"%d\n" % number)
                end = b"%d\n" % number
                await until(lambda end=end: sink.of(0, Stream.MESSAGES).endswith(end), "the message")
            fifo.write_text("last\n")
            assert await place.ended(process) == 0
            assert sink.of(0, Stream.STDOUT) == b"first\nlast\n"

    asyncio.run(scenario())


def test_200_000_lines_at_full_speed(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool):
            script = "import sys\nfor i in range(200_000): print('line', i, 'x' * 60); print(i, file=sys.stderr)"
            job = place.job(sys.executable, "-c", script)
            assert await place.ended(place.start(job)) == 0
            assert sink.of(0, Stream.STDOUT).count(b"\n") == 200_000
            assert sink.of(0, Stream.STDERR).count(b"\n") == 200_000
            assert_all_arrived(sink, job)
            assert sink.largest <= 256 * 1024

    asyncio.run(scenario())


def test_beyond_its_limit_a_stream_is_only_sampled(place: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB at full speed, then ten lines that come slowly: the link carries the first MiB and some lines."""
    monkeypatch.setattr(budgets, "SAMPLE_EVERY", 0.2)
    limit, line = 1_000_003, 100

    async def scenario() -> None:
        sink = Sampled(limits={"stdout": limit})
        async with serving(sink, place.spool):
            fifo = place.home / "go"
            os.mkfifo(fifo)
            script = textwrap.dedent(f"""
                import os, sys
                for i in range(1000): os.write(1, b"".join(b"%098d\\n\\n" % (i * 1000 + j) for j in range(1000)))
                open({str(fifo)!r}).read()
                os.write(1, b"end")
                """)
            job = place.job(sys.executable, "-c", script)
            process = place.start(job)
            size = 1000 * 1000 * line
            await until(lambda: sink.pieces and sink.pieces[-1][0] + len(sink.pieces[-1][1]) == size, "the newest")
            fifo.write_text("")
            assert await place.ended(process) == 0
            await until(lambda: sink.ends and not sink.connected, "the end")
        written = payload_bytes(job, 0, Stream.STDOUT)
        assert sink.ends[0].sizes["stdout"] == len(written) == size + 3
        in_full = b"".join(data for offset, data in sink.pieces if offset < limit)
        assert in_full == written[:limit]
        samples = [(offset, data) for offset, data in sink.pieces if offset >= limit]
        assert samples
        for offset, data in samples:
            assert written[offset : offset + len(data)] == data
            assert len(data) <= budgets.SAMPLE_BYTES
            assert data.endswith(b"\n")
        assert all(written[offset - 1 : offset] == b"\n" for offset, _ in samples[1:])

    asyncio.run(scenario())


def test_slow_lines_are_coalesced(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool):
            script = "import sys, time\nfor i in range(400): print(i, flush=True); time.sleep(0.001)"
            job = place.job(sys.executable, "-c", script)
            assert await place.ended(place.start(job)) == 0
            assert_all_arrived(sink, job)
            assert 2 <= sink.chunks <= 100

    asyncio.run(scenario())


class TestPipes:
    """Stock dagster_pipes with its defaults."""

    def job(self, place: Lab, script: str, **plan: str) -> JobDir:
        source = Path(dagster_pipes.__file__)
        folder = place.home / "pipes"
        folder.mkdir()
        (folder / "dagster_pipes.py").write_bytes(source.read_bytes())
        program = "from dagster_pipes import open_dagster_pipes\n" + textwrap.dedent(script)
        # -S: the payload's Python has nothing installed
        job = place.job(sys.executable, "-S", "-c", program, pipes=True, pipes_path=str(folder), **plan)
        context = {
            "asset_keys": ["a"],
            "code_version_by_asset_key": {"a": None},
            "provenance_by_asset_key": {"a": None},
            "partition_key": None,
            "partition_key_range": None,
            "partition_time_window": None,
            "run_id": "r",
            "job_name": "j",
            "retry_number": 0,
            "extras": {"year": 2026},
        }
        job.write_context(json.dumps(context).encode())
        return job

    @pytest.mark.parametrize("preamble", ["", "true"])
    def test_1500_messages_of_60_kb_and_one_of_5_mb(self, place: Lab, preamble: str) -> None:
        script = """
            with open_dagster_pipes() as pipes:
                assert pipes.extras["year"] == 2026
                for i in range(1500):
                    pipes.report_custom_message({"i": i, "x": "y" * 60_000})
                pipes.report_custom_message({"i": 1500, "x": "z" * 5_000_000})
        """

        async def scenario() -> None:
            sink = Sink()
            async with serving(sink, place.spool):
                job = self.job(place, script, preamble=preamble)
                assert await place.ended(place.start(job)) == 0, payload_bytes(job, 0, Stream.STDERR)
                assert_all_arrived(sink, job)
                messages = [json.loads(line) for line in sink.of(0, Stream.MESSAGES).splitlines()]
                assert [message["method"] for message in messages[:1]] == ["opened"]
                payloads = [m["params"]["payload"] for m in messages if m["method"] == "report_custom_message"]
                assert [payload["i"] for payload in payloads] == list(range(1501))
                assert len(payloads[-1]["x"]) == 5_000_000
                assert sink.largest <= 256 * 1024

        asyncio.run(scenario())


def test_without_inotify_files_are_looked_at(place: Lab) -> None:
    limit = "/proc/sys/user/max_inotify_instances"
    namespace = ("unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 >{limit} && exec "$0"')
    done = subprocess.run([*namespace, "true"], capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"inotify can't be taken away here: {done.stderr.strip()}")

    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool):
            fifos = [place.home / "go", place.home / "go on"]  # a writer that closes late would end the next read, too
            for fifo in fifos:
                os.mkfifo(fifo)
            job = place.job("bash", "-c", f"echo first; read go <'{fifos[0]}'; echo second; read go <'{fifos[1]}'")
            process = place.start(job, inside=namespace)
            for fifo, expected in zip(fifos, (b"first\n", b"first\nsecond\n"), strict=True):
                await until(lambda expected=expected: sink.of(0, Stream.STDOUT) == expected, "the line")
                assert not any("anon_inode:inotify" in os.readlink(path) for path in descriptors(process.pid))
                fifo.write_text("\n")
            assert await place.ended(process) == 0
            assert_all_arrived(sink, job)

    asyncio.run(scenario())


def test_any_bytes_cut_anywhere(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool):
            script = r"import os; os.write(1, b'\xf0\x9f\x98' * 100_001); os.write(1, b'\x80\xff\x00\xc3' * 100_000)"
            job = place.job(sys.executable, "-c", script)
            assert await place.ended(place.start(job)) == 0
            assert_all_arrived(sink, job)
            assert sink.chunks >= 2

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_links_cut_and_agents_restarted_at_random_moments(place: Lab, seed: int) -> None:
    rng = random.Random(seed)

    async def scenario() -> None:
        sink = Sink()
        job = place.job("bash", "-c", f'exec {sys.executable} -c "$0" {seed} "$SLURMBUS_SPOOL/0.messages"', CHATTER)
        process = place.start(job)
        cuts = 0
        while process.poll() is None:
            server = LinkServer(sink, lambda _key, _task: SECRET, "127.0.0.1", keys=KEYS)
            place.spool.write_link(await server.start())
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(rng.random() * 0.15)
                for wire in list(server._wires):
                    wire.hang_up()
                    cuts += 1
            await asyncio.sleep(rng.random() * 0.15)
            await server.aclose()
        assert process.returncode == 0
        assert cuts
        report = job.report(0)
        assert report is not None
        assert report.end is not None
        for stream in Stream:
            written = payload_bytes(job, 0, stream)
            have = sink.of(0, stream)
            assert written.startswith(have)
            # what the link didn't bring the agent reads from the spool
            have += job.read(0, stream, len(have), report.end.sizes[stream] - len(have))
            assert have == written

    asyncio.run(scenario())


def test_a_link_that_comes_late_brings_everything(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        fifo = place.home / "go"
        os.mkfifo(fifo)
        job = place.job("bash", "-c", f"seq 50000; cat {fifo}; exit 9")
        process = place.start(job)
        await until(lambda: len(payload_bytes(job, 0, Stream.STDOUT)) > 288_000, "the output")
        async with serving(sink, place.spool):
            await until(lambda: len(sink.of(0, Stream.STDOUT)) > 288_000, "the output on the link")
            fifo.write_text("end\n")
            assert await place.ended(process) == 9
            assert_all_arrived(sink, job)

    asyncio.run(scenario())


def test_without_an_agent_the_spool_is_enough(place: Lab) -> None:
    """The address is there, but nobody listens."""
    place.spool.write_link(LinkAddress(hosts=("127.0.0.1",), port=1, server="x"))
    fifo = place.home / "go"
    os.mkfifo(fifo)
    job = place.job("bash", "-c", f"seq 1000; cat {fifo}; echo end; exit 2")
    process = place.start(job)

    async def scenario() -> None:
        await until(lambda: job.report(0) is not None, "a report while it runs")
        report = job.report(0)
        assert report is not None
        assert (report.end, report.sizes["stdout"]) == (None, 3893)
        assert report.started_at is not None
        fifo.write_text("")
        assert await place.ended(process) == 2

    asyncio.run(scenario())
    report = job.report(0)
    assert report is not None
    assert report.end is not None
    assert report.end.exit_code == 2
    assert job.final_sizes(0) == report.end.sizes == {"stdout": 3897, "stderr": 0, "messages": 0}
    assert job.read(0, Stream.STDOUT, 0, 3897) == payload_bytes(job, 0, Stream.STDOUT)


def test_a_frozen_agent_disturbs_nobody(place: Lab) -> None:
    """The agent is a process that is stopped in the middle; the runner leaves it behind, the spool has it all."""
    program = f"""
import asyncio, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from typing import Any
from runner_lab import Sink, serving
from slurmbus_agent.spool import Spool
async def main():
    async with serving(Sink(), Spool(Path({str(place.spool.root)!r}))) as server:
        print("listening", flush=True)
        while not server.connections: await asyncio.sleep(0.001)
        print("connected", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    agent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "listening\n"
        fifo = place.home / "go"
        os.mkfifo(fifo)
        job = place.job("bash", "-c", f"cat {fifo}; seq 1000000")
        process = place.start(job)
        assert agent.stdout.readline() == "connected\n"
        agent.send_signal(signal.SIGSTOP)
        fifo.write_text("")
        assert process.wait(20) == 0  # nobody waits for the agent to thaw: it never does
        report = job.report(0)
        assert report is not None
        assert report.end is not None
        assert report.end.sizes["stdout"] == len(payload_bytes(job, 0, Stream.STDOUT)) == 6_888_896
    finally:
        agent.kill()
        agent.wait()
        if agent.stdout is not None:
            agent.stdout.close()


def test_a_slow_bus_closes_the_window_and_nothing_else(place: Lab) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        sink = Sink(before_chunk=gate.wait)
        async with serving(sink, place.spool) as server:
            job = place.job("bash", "-c", "seq 1000000; echo done >&2; sleep 0.2; exit 4")
            process = place.start(job)
            await until(lambda: payload_bytes(job, 0, Stream.STDERR), "the payload's end")
            assert server.in_flight <= 2 * 1024 * 1024
            assert memory_of(process.pid) < 40 * 1024 * 1024
            gate.set()
            assert await place.ended(process) == 4
            assert_all_arrived(sink, job)

    asyncio.run(scenario())


class TestFullDisk:
    def test_the_end_is_reported_by_the_link(self, place: Lab) -> None:
        """/dev/full behind the streams and the report: everybody can have a full disk."""

        async def scenario() -> None:
            sink = Sink()
            async with serving(sink, place.spool):
                job = place.job("bash", "-c", "echo lost; exit 1")
                for name in ("0.stdout", "0.report.new"):
                    (job.path / name).symlink_to("/dev/full")
                assert await place.ended(place.start(job)) == 1
                end = sink.ends[0]
                assert (end.exit_code, end.error_code) == (1, "spool-full")
                assert "full" in (end.error or "")
                assert "No space left" in payload_bytes(job, 0, Stream.STDERR).decode()
                assert "full" in job.batch_output.read_text()
                assert job.report(0) is None

        asyncio.run(scenario())

    def test_a_real_one(self, tmp_path: Path) -> None:
        (tmp_path / "small").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "small")]
        done = subprocess.run(mount, capture_output=True, check=False, text=True)
        if done.returncode:
            pytest.skip(f"a small disk can't be mounted here: {done.stderr.strip()}")

        async def scenario(place: Lab) -> None:
            sink = Sink()
            async with serving(sink, place.spool):
                job = place.job("bash", "-c", "yes | head -c 2000000; exit $?")
                assert await place.ended(place.start(job)) != 0
                end = sink.ends[0]
                assert end.error_code == "spool-full"
                assert sink.of(0, Stream.STDOUT) == payload_bytes(job, 0, Stream.STDOUT)
                assert len(sink.of(0, Stream.STDOUT)) > 500_000

        try:
            with lab(tmp_path / "small") as place:
                asyncio.run(scenario(place))
        finally:
            subprocess.run(["umount", str(tmp_path / "small")], check=True)


class TestClaims:
    def test_two_runners_at_once_run_one_payload(self, place: Lab) -> None:
        async def scenario() -> None:
            sink = Sink()
            async with serving(sink, place.spool):
                for _ in range(5):
                    ran = place.home / "ran"
                    ran.write_text("")
                    job = place.job("bash", "-c", f"echo $SLURM_JOB_ID >>{ran}")
                    twins = [place.start(job) for _ in range(3)]
                    codes = sorted([await place.ended(twin) for twin in twins])
                    assert codes == [0, 113, 113]
                    [claim] = job.claims()
                    assert ran.read_text() == f"{claim.job_id}\n"
                    assert job.batch_output.read_text().count(f"taken by Slurm job {claim.job_id} on c1") == 2
            assert {start.number for start in sink.hellos} == {0}

        asyncio.run(scenario())

    def test_the_agents_claim_keeps_a_payload_from_starting(self, place: Lab) -> None:
        for requeue in (False, True):
            job = place.job("true", requeue=requeue)
            job.claim(Claim(start=0, job_id=0, node="@agent", nonce="x"))
            assert place.run(job) == 113
            assert "the agent has closed this job" in job.batch_output.read_text()

    def test_a_requeueable_job_starts_again(self, place: Lab) -> None:
        job = place.job("bash", "-c", 'echo "start $SLURMBUS_START"; exit $SLURMBUS_START', requeue=True)
        for start in range(3):
            assert place.run(job, job_id=7) == start
            assert payload_bytes(job, start, Stream.STDOUT) == b"start %d\n" % start
            report = job.report(start)
            assert report is not None
            assert report.end is not None
            assert report.end.exit_code == start
        assert [claim.start for claim in job.claims()] == [0, 1, 2]

    def test_whoever_sees_a_successor_kills_its_payload(self, place: Lab) -> None:
        async def scenario() -> None:
            sink = Sink()
            async with serving(sink, place.spool) as server:
                job = place.job("bash", "-c", "trap '' TERM; echo $$; sleep 100", requeue=True)
                first = place.start(job, job_id=7)
                await until(lambda: sink.of(0, Stream.STDOUT), "the first start")
                second = place.start(job, job_id=7)
                await until(lambda: sink.of(1, Stream.STDOUT), "the second start")
                assert first.poll() is None
                [old] = [wire for name, wire in wires(server).items() if name == 0]
                old.hang_up()  # it looks for a successor when it comes back
                assert await place.ended(first) == 113
                assert sink.ends[0].error_code == "superseded"
                assert sink.ends[0].signal == 9
                assert memory_of(int(sink.of(0, Stream.STDOUT))) == 0
                assert second.poll() is None
                second.kill()

        def wires(server: LinkServer) -> dict[int, Any]:
            return {name[2]: session._wire for name, session in server._sessions.items()}

        asyncio.run(scenario())

    def test_a_refused_runner_looks_for_its_successor(self, place: Lab) -> None:
        async def scenario() -> None:
            superseded = False

            def refuse(start: Start) -> bool:
                return superseded and start.number == 0

            sink = Sink(refuse=refuse)
            async with serving(sink, place.spool) as server:
                job = place.job("sleep", "100")
                process = place.start(job)
                await until(lambda: 0 in sink.started_at, "the start")
                superseded = True
                job.claim(Claim(start=1, job_id=0, node="@agent", nonce="x"))
                for wire in list(server._wires):
                    wire.hang_up()
                assert await place.ended(process) == 113
                report = job.report(0)
                assert report is not None
                assert report.end is not None
                assert report.end.error_code == "superseded"

        asyncio.run(scenario())


@pytest.mark.parametrize("encrypts", ["with a key of its own", "with a stolen key", "not at all"])
def test_a_false_agent_learns_nothing(place: Lab, encrypts: str) -> None:
    """Somebody else listens where an earlier agent did: its key, or its secret, isn't the agent's."""
    made = make_alone("theirs")
    keys = KEYS if encrypts == "with a stolen key" else LinkKeys.of(made.pem + made.key)

    async def scenario() -> None:
        heard: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read(1000))
            writer.write(b'\0\0\0\x3c{"type":"challenge","challenge":"00","proof":"00"}          \n')
            heard.append(await reader.read(1000))
            writer.close()

        false = await asyncio.start_server(
            listen, "127.0.0.1", 0, ssl=None if encrypts == "not at all" else keys.context
        )
        port = false.sockets[0].getsockname()[1]
        place.spool.write_link(LinkAddress(hosts=("127.0.0.1",), port=port, server="x", fingerprint=KEYS.fingerprint))
        job = place.job("echo", "secret words")
        assert await place.ended(place.start(job)) == 0
        if encrypts == "with a stolen key":
            assert heard[0][4:].startswith(b'{"type":"hello"')
            assert heard[1] == b""
        elif encrypts == "with a key of its own":
            assert not any(heard)
        else:
            assert not any(b"hello" in words for words in heard)
        assert payload_bytes(job, 0, Stream.STDOUT) == b"secret words\n"
        false.close()
        await false.wait_closed()

    asyncio.run(scenario())


WITHOUT_SSL = f"""\
#!/bin/sh
exec {sys.executable} -c 'import runpy, sys
sys.modules["ssl"] = None
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


def test_a_python_without_ssl_says_so_once_and_leaves_it_to_the_spool(place: Lab) -> None:
    async def scenario() -> None:
        async with serving(Sink(), place.spool) as server:
            python = place.home / "python3"
            python.write_text(WITHOUT_SSL)
            python.chmod(0o755)
            job = place.job("bash", "-c", "sleep 0.5; echo words")
            process = place.start(job, python=str(python))
            assert await place.ended(process) == 0
            assert payload_bytes(job, 0, Stream.STDOUT) == b"words\n"
            report = job.report(0)
            assert report is not None
            assert report.end is not None
            assert job.batch_output.read_text().count("no TLS 1.3 (module ssl)") == 1
            assert not server.dropped

    asyncio.run(scenario())


def test_every_address_is_tried(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with serving(sink) as server:
            assert server.address is not None
            hosts = ("no.such.host.invalid", "127.0.0.2", "127.0.0.1")
            place.spool.write_link(msgspec.structs.replace(server.address, hosts=hosts))
            job = place.job("sleep", "0.2")
            assert await place.ended(place.start(job)) == 0
            assert 0 in sink.ends

    asyncio.run(scenario())
