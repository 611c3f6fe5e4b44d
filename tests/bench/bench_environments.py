"""1 GB of an environment over the bus, side by side with the same chunks in a bare NATS loop, with and without TLS.

Both go through one server with the settings of the embedded one, hash every byte, and take turns. Upload is
``blobs.put_file``; download is ``blobs.fetch_into`` a file, as
the agent does it. Meanwhile a process of its own publishes small synced messages into another stream, as other jobs'
events, and asks a question that a third process answers, as a ping: how long these take beside either tells what the
transfer does to them. It fails when the transfer is slower than half of the bare loop, or holds the others up.

Then 500 MB of packages go the whole way to a job on the real cluster: cold, and once more when everything is there.

``BENCH_BYTES``, ``BENCH_ROUNDS`` and ``BENCH_ENVIRONMENT_BYTES`` make it shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import nats
import pytest

from environment_lab import make_lock, make_package
from integration.jobs import follow, spec
from slurmbus.client import SiteClient
from slurmbus.environments import Requirements, Shipper
from slurmbus_protocol import blobs, subjects
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.codec import BLOB_CHUNK
from slurmbus_protocol.embedded import find_server
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import BusLimits, ensure_streams

pytest_plugins = ["integration.conftest"]

SIZE = int(os.environ.get("BENCH_BYTES", str(1024**3)))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
KEY = "01JD0000000000000000000000"
SHARE = 0.5
"""Of what the bare loop reaches, at least; the other half is what checking, resuming and giving way may cost."""
HELD_UP = 1.0
"""Seconds within which 99 of 100 events and pings have their answers: half of the 2 s between two heartbeats of an
agent with jobs. So no renewal of a lease comes late by a transfer, and nobody is taken for gone."""
PACKAGES = int(os.environ.get("BENCH_ENVIRONMENT_BYTES", str(500 * 10**6)))
WHEELS = 10
MODULES = 200
"""Of each wheel, beside what makes it large: each is a file to be written and compiled."""


@contextlib.contextmanager
def server(folder: Path, *, tls: bool) -> Iterator[BusSettings]:
    """Run a server with the embedded one's settings."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = BusLimits(blobs=8 * SIZE * ROUNDS + 1024**3)
    config: dict[str, object] = {
        "listen": f"127.0.0.1:{port}",
        "jetstream": {
            "store_dir": str(folder / "jetstream"),
            "max_memory_store": 256 * 1024**2,
            "max_file_store": 4 * limits.total,
            "sync_interval": "always",
        },
        "feature_flags": {"js_ack_fc_v2": False},
    }
    ca = folder / "cert.pem"
    if tls:
        names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        words += ["-subj", "/CN=bench", "-addext", names, "-keyout", str(folder / "key.pem"), "-out", str(ca)]
        subprocess.run(["openssl", *words], check=True, capture_output=True)
        config["tls"] = {"cert_file": str(ca), "key_file": str(folder / "key.pem")}
    (folder / "nats.conf").write_text(json.dumps(config))
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen([str(find_server()), "-c", str(folder / "nats.conf")], stderr=log)
    try:
        url = f"{'tls' if tls else 'nats'}://127.0.0.1:{port}"
        settings = BusSettings(servers=(url,), ca_file=ca if tls else None)
        asyncio.run(_set_up(settings, limits))
        yield settings
    finally:
        process.terminate()
        process.wait()


async def _set_up(settings: BusSettings, limits: BusLimits) -> None:
    for _ in range(100):
        with contextlib.suppress(Exception):
            async with Bus(settings) as bus:
                await ensure_streams(bus, limits)
                return
        await asyncio.sleep(0.1)
    raise AssertionError("the server didn't come up")


# ---------------------------------------------------------------------- the two ways


async def bare_put(settings: BusSettings, path: Path, digest: str) -> None:
    client = await nats.connect(list(settings.servers), tls=settings.tls(), pending_size=64 * 1024**2)
    gate = asyncio.Semaphore(blobs.WINDOW)
    check = hashlib.sha256()

    async def put(index: int, piece: bytes) -> None:
        answer = await client.request(f"blob.{digest}.{index}", piece, timeout=60)
        assert b'"error"' not in answer.data
        gate.release()

    with path.open("rb") as file:
        async with asyncio.TaskGroup() as group:
            index = 0
            while piece := file.read(BLOB_CHUNK):
                check.update(piece)
                await gate.acquire()
                group.create_task(put(index, piece))
                index += 1
    await client.close()


async def bare_get(settings: BusSettings, target: Path, digest: str, expected: str) -> None:
    client = await nats.connect(list(settings.servers), tls=settings.tls())
    check = hashlib.sha256()
    pending: list[asyncio.Task[nats.aio.msg.Msg]] = []
    total, index = blobs.chunk_count(SIZE), 0
    with target.open("wb") as file:
        while index < total or pending:
            while index < total and len(pending) < blobs.WINDOW:
                subject = f"$JS.API.DIRECT.GET.{subjects.BLOBS}.blob.{digest}.{index}"
                pending.append(asyncio.create_task(client.request(subject, timeout=60)))
                index += 1
            piece = (await pending.pop(0)).data
            check.update(piece)
            file.write(piece)
    assert check.hexdigest() == expected
    await client.close()


async def our_put(settings: BusSettings, path: Path, digest: str) -> None:
    async with Bus(settings) as bus:
        assert await blobs.put_file(bus, path, digest, SIZE) == SIZE


async def our_get(settings: BusSettings, target: Path, digest: str) -> None:
    async with Bus(settings) as bus:
        with target.open("wb") as file:
            await blobs.fetch_into(bus, digest, SIZE, file)


# ---------------------------------------------------------------------- what others feel meanwhile


def _answer(settings: BusSettings) -> None:
    async def serve() -> None:
        async with Bus(settings) as bus:
            await bus.serve("bench.rpc", lambda msg: bus.respond(msg, b"pong"))
            await asyncio.Event().wait()

    asyncio.run(serve())


def _others(settings: BusSettings, pipe: Connection) -> None:
    """Publish events and ask questions until told to stop; give their times."""

    async def live() -> None:
        events: list[float] = []
        pings: list[float] = []
        subject = subjects.state("bench", KEY, 0)
        async with Bus(settings) as bus:
            last = await bus.last(subjects.STATES, subject)
            sequence = last.sequence if last else 0
            while True:
                with contextlib.suppress(BusUnreachable):
                    await bus.request("bench.rpc")
                    break
                await asyncio.sleep(0.1)
            pipe.send("ready")
            while not pipe.poll():
                begin = time.monotonic()
                sequence = await bus.publish(subject, b"x" * 1500, expected_last=sequence)
                events.append(time.monotonic() - begin)
                begin = time.monotonic()
                await bus.request("bench.rpc")
                pings.append(time.monotonic() - begin)
                await asyncio.sleep(0.02)
        pipe.send((events, pings))

    asyncio.run(live())


@contextlib.contextmanager
def others(settings: BusSettings, found: dict[str, tuple[list[float], list[float]]], name: str) -> Iterator[None]:
    """Let another process live beside the block, and keep what it felt."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_others, args=(settings, theirs))
    process.start()
    assert mine.recv() == "ready"
    yield
    mine.send("stop")
    events, pings = mine.recv()
    before = found.setdefault(name, ([], []))
    before[0].extend(events)
    before[1].extend(pings)
    process.join()


def _show(found: dict[str, tuple[list[float], list[float]]]) -> None:
    for name, (events, pings) in found.items():
        for what, values in (("event of another job", events), ("ping", pings)):
            print(
                f"  {what:>20} beside {name:<14}: median {statistics.median(values) * 1000:6.1f} ms, "
                f"p99 {_p99(values) * 1000:6.1f} ms, longest {max(values) * 1000:6.1f} ms"
            )


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_gigabyte(tmp_path: Path, tls: bool) -> None:
    found: dict[str, tuple[list[float], list[float]]] = {}
    rates: dict[str, list[float]] = {}

    def timed(name: str, work: object) -> None:
        begin = time.monotonic()
        asyncio.run(work)  # type: ignore[arg-type]
        rates.setdefault(name, []).append(SIZE / (time.monotonic() - begin) / 1e6)

    with server(tmp_path, tls=tls) as settings:
        context = multiprocessing.get_context("fork")
        answering = context.Process(target=_answer, args=(settings,), daemon=True)
        answering.start()
        with others(settings, found, "nothing else"):
            time.sleep(3)
        for number in range(ROUNDS):
            path, target = tmp_path / "file", tmp_path / "back"
            with path.open("wb") as file:
                for _ in range(SIZE // 1024**2):
                    file.write(os.urandom(1024**2))
            bare = hashlib.sha256(b"%d" % number).hexdigest()  # another subject: each way stores its own chunks
            digest, _ = blobs.hash_file(path)
            puts = [partial(bare_put, settings, path, bare), partial(our_put, settings, path, digest)]
            gets = [partial(bare_get, settings, target, bare, digest), partial(our_get, settings, target, digest)]
            for way in (*puts[:: 1 - 2 * (number % 2)], *gets[:: 1 - 2 * (number % 2)]):
                name = way.func.__name__.replace("_", " ")
                with others(settings, found, name):
                    timed(name, way())
            target.unlink()
            asyncio.run(_empty(settings))
        answering.terminate()
    print(f"\n{SIZE / 1e6:,.0f} MB, {ROUNDS} rounds, {'TLS' if tls else 'no TLS'}, nats-server syncs always")
    for name, values in rates.items():
        print(f"  {name:>10}: median {statistics.median(values):7.1f} MB/s, {min(values):.1f} to {max(values):.1f}")
    shares: dict[str, float] = {}
    for way in ("put", "get"):
        pairs = [ours / theirs for ours, theirs in zip(rates[f"our {way}"], rates[f"bare {way}"], strict=True)]
        print(f"  our {way} over the bare one: {statistics.median(pairs):.2f}, {min(pairs):.2f} to {max(pairs):.2f}")
        shares[way] = statistics.median(pairs)
    _show(found)
    assert all(share >= SHARE for share in shares.values()), f"slower than {SHARE} of the bare loop: {shares}"
    late = {name: [_p99(values) for values in found[name]] for name in ("our put", "our get")}
    assert max(max(pair) for pair in late.values()) < HELD_UP, f"events and pings were held up: {late}"


async def _empty(settings: BusSettings) -> None:
    async with Bus(settings) as bus:
        await bus.api(f"STREAM.PURGE.{subjects.BLOBS}", {})


# ---------------------------------------------------------------------- the whole way


def packages(folder: Path) -> Requirements:
    """Make an environment of new packages: data that can't be compressed, and modules."""
    wheels = []
    for number in range(WHEELS):
        name = f"part{number}"
        modules = {
            f"{name}_modules/m{index}.py": b"".join(b"def f%d(x):\n    return x + %d\n" % (n, n) for n in range(100))
            for index in range(MODULES)
        }
        data = {f"{name}_modules/data.bin": os.urandom(PACKAGES // WHEELS)}
        wheels.append(make_package(folder, name, "def main(): ...\n", **modules, **data))
    return Requirements(str(make_lock(folder, *wheels)))


def way_to_a_job(site: SiteClient, environment: Requirements) -> tuple[dict[str, float], int]:
    """Bring an environment to a job; give how long each part took, and how many bytes were sent."""
    taken: dict[str, float] = {}
    begin = time.monotonic()
    shipper = Shipper(site)
    ref, pack = shipper.wire(environment)
    assert pack is not None
    taken["pack"] = time.monotonic() - begin
    sent = shipper.upload(pack)
    taken["upload"] = time.monotonic() - begin - taken["pack"]
    record = follow(site, site.submit(spec("python3", "-c", "import part0_modules.m0", environment=ref))).record
    assert record.state is JobState.COMPLETED, record
    times = record.timings
    taken["install"] = times["staged"] - times["requested"]
    taken["job starts"] = times["claimed"] - times["staged"]
    taken["in all"] = sum(taken.values())
    return taken, sent


@pytest.mark.timeout(3600)
def test_half_a_gigabyte_from_here_to_a_job(alice: SiteClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, dict[str, list[float]]] = {"cold": {}, "warm": {}}
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.setenv("SLURMBUS_CACHE", str(folder / "cache"))
        environment = packages(folder)
        for name, parts in found.items():
            taken, sent = way_to_a_job(alice, environment)
            assert (sent > PACKAGES) == (name == "cold")
            for part, seconds in taken.items():
                parts.setdefault(part, []).append(seconds)
    print(f"\n{PACKAGES / 1e6:,.0f} MB in {WHEELS} wheels, {ROUNDS} rounds, TLS, one login node and a shared folder")
    for name, parts in found.items():
        for part, values in parts.items():
            middle = statistics.median(values)
            print(f"  {name}: {part:>10}: median {middle:6.2f} s, {min(values):.2f} to {max(values):.2f}")
