"""The agent's end of the link, against peers that are real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runner_lab import KEYS, SECRET, Sink, serving, until
from slurmbus_agent import budgets, link
from slurmbus_agent.link import LinkServer, addresses
from slurmbus_agent.link_tls import LinkKeys
from slurmbus_agent.link_wire import Budget
from slurmbus_agent.runner import frames
from slurmbus_agent.runner.protocol import SAMPLES_SINCE
from slurmbus_protocol.errors import BusFull
from slurmbus_protocol.messages import Start
from slurmbus_protocol.subjects import Stream, new_ulid

KEY = new_ulid()


def pinned() -> ssl.SSLContext:
    """Give what a peer encrypts with; the fingerprint is the runner's tests'."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Peer:
    """A runner by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: str) -> None:
        self.reader = reader
        self.writer = writer
        self.server = server

    async def send(self, header: dict[str, Any], data: bytes = b"") -> None:
        self.writer.write(frames.pack(header, len(data)) + data)
        await self.writer.drain()

    async def receive(self) -> dict[str, Any]:
        size = int.from_bytes(await self.reader.readexactly(frames.PREFIX), "big")
        header: dict[str, Any] = json.loads(await self.reader.readexactly(size))
        return header

    async def closed(self) -> bool:
        with contextlib.suppress(OSError):
            while await self.reader.read(1 << 16):
                pass
        return True

    async def greet(self, secret: bytes = SECRET, **changes: Any) -> dict[str, Any]:
        """Prove to be start 0 of the job, and give the answer."""
        hello = {
            "type": "hello",
            "key": KEY,
            "task": 0,
            "start": 0,
            "job_id": 5,
            "node": "c1",
            "nonce": "ab",
            "claimed_at": 1.5,
            "python": "3.9.1",
            "version": 1,
            "challenge": "cd",
            **changes,
        }
        line = frames.pack(hello)[frames.PREFIX :]
        await self.send(hello)
        answer = await self.receive()
        assert answer["proof"] == frames.proof(SECRET, frames.AGENT, self.server, answer["challenge"], line)
        proof = frames.proof(secret, frames.RUNNER, self.server, answer["challenge"], line)
        await self.send({"type": "proof", "proof": proof})
        return await self.receive()

    async def chunk(self, offset: int, data: bytes, stream: str = "stdout", number: int = 0) -> None:
        await self.send({"type": "chunk", "stream": stream, "offset": offset, "round": number}, data)


@contextlib.asynccontextmanager
async def meeting(sink: Sink, **options: Any) -> AsyncIterator[tuple[LinkServer, Any]]:
    """Serve, and give a way to make peers."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(sink, **options))
        address = server.address
        assert address is not None

        async def connect() -> Peer:
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port, ssl=pinned())

            async def close() -> None:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

            stack.push_async_callback(close)
            return Peer(reader, writer, address.server)

        yield server, connect


def test_a_runner_is_served() -> None:
    async def scenario() -> None:
        sink = Sink()
        sink.of(0, Stream.STDOUT).extend(b"12345")
        async with meeting(sink) as (server, connect):
            peer = await connect()
            welcome = await peer.greet()
            assert welcome == {"type": "welcome", "offsets": {"stdout": 5, "stderr": 0, "messages": 0}}
            assert sink.hellos == [Start(number=0, job_id=5, node="c1", nonce="ab", started_at=1.5)]
            assert server.connections == 1
            await peer.send({"type": "started", "started_at": 2.5})
            assert await peer.receive() == {"type": "noted", "what": "started"}
            await peer.chunk(5, b"678")
            assert await peer.receive() == {"type": "ack", "stream": "stdout", "end": 8, "next": 8, "round": 0}
            end = {"exit_code": 3, "signal": None, "ended_at": 4.0, "sizes": {"stdout": 8}, "error": None}
            await peer.send({"type": "ended", "end": end})
            assert await peer.receive() == {"type": "noted", "what": "ended"}
            assert sink.of(0, Stream.STDOUT) == b"12345678"
            assert sink.started_at == {0: 2.5}
            assert sink.ends[0].exit_code == 3
            peer.writer.close()
            await until(lambda: not server.connections, "the end of the connection")
            assert sink.connected == 0
            assert not server.dropped
            assert server.in_flight == 0

    asyncio.run(scenario())


def test_other_bytes_are_asked_for_and_older_rounds_dropped() -> None:
    async def scenario() -> None:
        sink = Sink()
        async with meeting(sink) as (_, connect):
            peer = await connect()
            await peer.greet()
            await peer.chunk(10, b"too early")
            await peer.chunk(19, b"as well")
            assert await peer.receive() == {"type": "ack", "stream": "stdout", "end": 19, "next": 0, "round": 1}
            await peer.chunk(0, b"of an older round")
            await peer.chunk(0, b"fits", number=1)
            assert await peer.receive() == {"type": "ack", "stream": "stdout", "end": 4, "next": 4, "round": 1}
            assert sink.of(0, Stream.STDOUT) == b"fits"

    asyncio.run(scenario())


def test_a_superseded_start_is_refused() -> None:
    async def scenario() -> None:
        sink = Sink(refuse=lambda start: start.number == 0)
        async with meeting(sink) as (server, connect):
            peer = await connect()
            assert await peer.greet() == {"type": "refused", "reason": "superseded"}
            assert await peer.closed()
            await until(lambda: not server.connections, "the end of the connection")
            assert sink.connected == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "garbage"),
        (b"\0\0\0\0", "garbage"),
        (b"\xff\xff\xff\xff" + bytes(100), "garbage"),
        (b"\0\4\0\0" + b"x" * (20 * 1024), "garbage"),
        (b"\0\0\0\6[1,2]\n", "garbage"),
        (b"\0\0\0\x03{}\n", "garbage"),
        (frames.pack({"type": "hello", "key": "../../etc", "task": 0}), "garbage"),
        (b"\0\0", "gone"),
        (b"", "gone"),
    ],
)
def test_strangers_are_dropped_and_counted(sent: bytes, reason: str) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with meeting(sink) as (server, connect):
            peer = await connect()
            peer.writer.write(sent)
            if reason == "gone":
                await peer.writer.drain()
                peer.writer.transport.abort()
            assert await peer.closed()
            await until(lambda: server.dropped, "the count")
            assert dict(server.dropped) == {reason: 1}
            assert not sink.hellos
            assert (await (await connect()).greet())["type"] == "welcome"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frames.pack({"type": "hello", "key": KEY, "task": 0}), "no TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "no TLS"),
        (b"\x16\x03\x01\xff\xff" + b"x" * 100, "no TLS"),
        (b"\x16\x03\x01", "silent"),
        (b"", "silent"),
    ],
    ids=["plain", "HTTP", "a huge record", "half a record", "nothing"],
)
def test_who_doesnt_encrypt_is_dropped(sent: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GREETING_WITHIN", 0.3)

    async def scenario() -> None:
        sink = Sink()
        async with meeting(sink) as (server, connect):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.address.port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert b"challenge" not in await reader.read()
            await until(lambda: server.dropped, "the count")
            assert dict(server.dropped) == {reason: 1}
            writer.transport.abort()
            assert (await (await connect()).greet())["type"] == "welcome"

    asyncio.run(scenario())


def test_who_greets_byte_by_byte_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GREETING_WITHIN", 0.3)

    async def scenario() -> None:
        async with meeting(Sink()) as (server, _):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            hello = pinned().wrap_bio(incoming, outgoing)
            with contextlib.suppress(ssl.SSLWantReadError):
                hello.do_handshake()
            _, writer = await asyncio.open_connection("127.0.0.1", server.address.port)
            for byte in outgoing.read():
                if server.dropped:
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)
            assert dict(server.dropped) == {"silent": 1}
            writer.transport.abort()

    asyncio.run(scenario())


def test_each_run_has_a_key_of_its_own_that_lies_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = (asyncio.run(LinkKeys.make()) for _ in range(2))
    assert first.fingerprint != second.fingerprint
    assert not list(tmp_path.iterdir())


def test_a_wrong_proof_is_dropped() -> None:
    async def scenario() -> None:
        sink = Sink()
        async with meeting(sink) as (server, connect):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await (await connect()).greet(secret=b"another job's secret")
            assert dict(server.dropped) == {"wrong proof": 1}
            assert not sink.hellos

    asyncio.run(scenario())


def test_an_unknown_job_is_dropped() -> None:
    async def scenario() -> None:
        server = LinkServer(Sink(), lambda _key, _task: None, "127.0.0.1", keys=KEYS)
        address = await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port, ssl=pinned())
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await Peer(reader, writer, address.server).greet()
        assert dict(server.dropped) == {"unknown job": 1}
        writer.transport.abort()
        await server.aclose()

    asyncio.run(scenario())


def test_silent_strangers_are_dropped_and_dont_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GREETING_WITHIN", 0.2)
    monkeypatch.setattr(link, "STRANGERS", 3)

    async def scenario() -> None:
        async with meeting(Sink()) as (server, connect):
            silent = [await connect() for _ in range(6)]
            assert (await (await connect()).greet())["type"] == "welcome"
            assert all([await peer.closed() for peer in silent])
            assert dict(server.dropped) == {"silent": 6}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"type": "chunk", "stream": "stdin", "offset": 0, "round": 0}, b"x"),
        ({"type": "chunk", "stream": "stdout", "offset": -1, "round": 0}, b"x"),
        ({"type": "chunk", "stream": "stdout", "offset": 0, "round": 0}, b""),
        ({"type": "ended", "end": {}}, b""),
        ({"type": "started", "started_at": 1.0}, b"x"),
        ({"type": "nonsense"}, b""),
    ],
)
def test_a_runner_that_talks_nonsense_is_dropped(header: dict[str, Any], data: bytes) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with meeting(sink) as (server, connect):
            peer = await connect()
            await peer.greet()
            await peer.send(header, data)
            assert await peer.closed()
            await until(lambda: not server.connections, "the end of the connection")
            assert dict(server.dropped) == {"garbage": 1}
            assert (sink.connected, server.in_flight) == (0, 0)

    asyncio.run(scenario())


def test_an_error_of_the_sink_ends_the_connection() -> None:
    async def fail() -> None:
        raise BusFull

    async def scenario() -> None:
        sink = Sink(before_chunk=fail)
        async with meeting(sink) as (server, connect):
            peer = await connect()
            await peer.greet()
            for offset in range(3):
                await peer.chunk(offset, b"x")
            assert await peer.closed()
            await until(lambda: not server.connections, "the end of the connection")
            assert dict(server.dropped) == {"the agent couldn't take it": 1}
            assert (sink.connected, server.in_flight) == (0, 0)

    asyncio.run(scenario())


def test_an_error_of_our_own_is_shown_and_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        sink = Sink(before_chunk=fail)
        async with meeting(sink) as (server, connect):
            peer = await connect()
            await peer.greet()
            other = await connect()
            await other.greet(start=1)
            await peer.chunk(0, b"x")
            assert await peer.closed()
            await until(lambda: server.connections == 1, "the end of one connection")
            assert "ZeroDivisionError" in caplog.text
            assert (sink.connected, server.in_flight) == (1, 0)

    asyncio.run(scenario())


def test_a_new_connection_waits_for_what_the_old_one_delivered() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        sink = Sink(before_chunk=gate.wait)
        async with meeting(sink) as (server, connect):
            old = await connect()
            await old.greet()
            await old.chunk(0, b"from the old one")
            await until(lambda: server.in_flight, "the chunk")
            new = await connect()
            greeting = asyncio.create_task(new.greet())
            assert await old.closed()
            assert len(sink.hellos) == 1
            gate.set()
            assert (await greeting)["offsets"]["stdout"] == 16
            assert (sink.connected, server.connections) == (1, 1)

    asyncio.run(scenario())


def test_memory_is_bounded_and_messages_pass_logs() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        sink = Sink()

        async def hold_logs(*_: Any) -> None:
            await gate.wait()

        budget = 1024 * 1024
        piece = bytes(200 * 1024)
        async with meeting(sink, budget_bytes=budget) as (server, connect):
            peers = [await connect() for _ in range(20)]
            for number, peer in enumerate(peers):
                await peer.greet(start=number)
            sink.before_chunk = hold_logs
            sending = [asyncio.create_task(peer.chunk(0, piece)) for peer in peers]
            await until(lambda: server.in_flight > budget / 2, "a full budget")
            last = await connect()
            await last.greet(start=20)
            sink.before_chunk = None
            await last.chunk(0, bytes(100 * 1024), "messages")
            assert (await last.receive())["stream"] == "messages"
            assert server.in_flight <= budget * 0.75
            gate.set()
            await asyncio.gather(*sending)
            await until(lambda: all(len(sink.of(n, Stream.STDOUT)) == len(piece) for n in range(20)), "all bytes")
            await until(lambda: server.in_flight == 0, "an empty budget")

    asyncio.run(scenario())


def test_small_pieces_pass_large_ones() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        budget = 1024 * 1024
        async with meeting(Sink(before_chunk=gate.wait), budget_bytes=budget) as (server, connect):
            flood = [await connect() for _ in range(8)]
            for number, peer in enumerate(flood):
                await peer.greet(start=number)
            sending = [asyncio.create_task(peer.chunk(0, bytes(200 * 1024))) for peer in flood]
            await until(lambda: server.in_flight > budget * 0.5, "as much of the flood as there is room for")
            before = server.in_flight
            quiet = await connect()
            await quiet.greet(start=20)
            await quiet.chunk(0, b"one line\n")
            await until(lambda: server.in_flight > before, "the line of another job")
            assert server.in_flight < before + 10_000
            gate.set()
            await asyncio.gather(*sending)
            assert (await quiet.receive())["type"] == "ack"

    asyncio.run(scenario())


def test_a_runner_is_told_the_limits() -> None:
    async def scenario() -> None:
        async with meeting(Sink(limits={"stdout": 10})) as (_, connect):
            peer = await connect()
            welcome = await peer.greet(version=SAMPLES_SINCE)
            assert welcome["limits"] == {"stdout": 10}
            assert welcome["sample"] == {"bytes": budgets.SAMPLE_BYTES, "every": budgets.SAMPLE_EVERY}
            await peer.chunk(0, b"0123456789")
            await peer.chunk(10, b"and more")  # it keeps to the limits by itself, and is answered at once
            assert (await peer.receive())["end"] == 10
            assert (await peer.receive())["end"] == 18

    asyncio.run(scenario())


def test_a_runner_that_doesnt_know_limits_is_slowed_down_and_skips_the_rest_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budgets, "SAMPLE_EVERY", 600.0)

    async def scenario() -> None:
        sink = Sink(limits={"stdout": 10})
        async with meeting(sink) as (server, connect):
            peer = await connect()
            await peer.greet(version=1)
            await peer.chunk(0, b"0123456789")
            assert (await peer.receive())["end"] == 10
            await peer.chunk(10, bytes(1000))
            await until(lambda: len(sink.of(0, Stream.STDOUT)) == 1010 and not server.in_flight, "its bytes")
            await peer.chunk(1010, bytes(1000))
            await peer.chunk(0, b"x", "stderr")
            assert (await peer.receive())["stream"] == "stderr", "only the stream over its limit is slowed down"
            end = {"exit_code": 0, "signal": None, "ended_at": 4.0, "sizes": {"stdout": 10**9, "stderr": 1}}
            await peer.send({"type": "ended", "end": end})
            answers = [await peer.receive() for _ in range(2)]
            assert {"type": "noted", "what": "ended"} in answers
            skip = {"type": "ack", "stream": "stdout", "end": 1010, "next": 10**9, "round": 1}
            assert skip in answers
            assert len(sink.of(0, Stream.STDOUT)) == 1010

    asyncio.run(scenario())


def test_bytes_that_the_bus_has_lost_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "SAMPLE_EVERY", 600.0)

    async def scenario() -> None:
        sink = Sink(limits={"stdout": 10})
        async with meeting(sink) as (_, connect):
            peer = await connect()
            await peer.greet(version=1)
            await peer.chunk(20, b"0123456789")
            assert (await peer.receive())["next"] == 0

    asyncio.run(scenario())


def test_who_waits_hears_that_we_are_alive_and_who_is_idle_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ALIVE_EVERY", 0.05)

    async def scenario() -> None:
        gate = asyncio.Event()
        sink = Sink()
        async with meeting(sink) as (_, connect):
            idle = await connect()
            await idle.greet(start=1)
            waiting = await connect()
            await waiting.greet()
            sink.before_chunk = gate.wait
            await waiting.chunk(0, b"x")
            for _ in range(3):
                assert await waiting.receive() == {"type": "alive"}
            gate.set()
            while (answer := await waiting.receive())["type"] == "alive":
                pass
            assert answer["type"] == "ack"
            await idle.chunk(0, b"x")
            assert (await idle.receive())["type"] == "ack"

    asyncio.run(scenario())


def test_closing_lets_everybody_go() -> None:
    async def scenario() -> None:
        sink = Sink(before_chunk=asyncio.Event().wait)
        async with meeting(sink) as (server, connect):
            peers = [await connect() for _ in range(3)]
            await peers[0].greet()
            await peers[0].chunk(0, b"never taken")
            await peers[1].greet(start=1)
            await until(lambda: server.in_flight, "the chunk")
            await server.aclose()
            assert all([await peer.closed() for peer in peers])
            assert (sink.connected, server.connections, server.in_flight) == (0, 0, 0)

    asyncio.run(scenario())


def test_a_thousand_runners() -> None:
    async def scenario() -> None:
        sink = Sink()
        async with meeting(sink) as (server, connect):

            async def one(number: int) -> Peer:
                peer: Peer = await connect()
                await peer.greet(start=number)
                await peer.chunk(0, b"%d\n" % number)
                assert (await peer.receive())["type"] == "ack"
                return peer

            peers = await asyncio.gather(*(one(number) for number in range(1000)))
            assert server.connections == 1000
            assert all(sink.of(number, Stream.STDOUT) == b"%d\n" % number for number in range(1000))
            for peer in peers:
                peer.writer.transport.abort()
            await until(lambda: server.connections == 0, "the end of all connections")
            assert not server.dropped

    asyncio.run(scenario())


def test_addresses_are_numbers_with_loopback_last() -> None:
    found = addresses()
    assert found[-1].startswith("127.")
    for address in found:
        assert socket.inet_aton(address)


def test_the_address_names_what_is_advertised() -> None:
    async def scenario() -> None:
        for options, hosts in (
            ({"host": "127.0.0.1"}, ("127.0.0.1",)),
            ({"advertise": ["login1", "10.0.0.1"]}, ("login1", "10.0.0.1")),
            ({}, addresses()),
        ):
            server = LinkServer(Sink(), lambda _key, _task: None, epoch=4, keys=KEYS, **options)
            address = await server.start()
            assert (address.hosts, address.epoch) == (hosts, 4)
            assert address.port
            await server.aclose()

    asyncio.run(scenario())


def test_a_cancelled_waiter_gives_its_turn_away() -> None:
    async def scenario() -> None:
        budget = Budget(10_000)
        first = await budget.take(8_000, urgent=True)
        waiting = [asyncio.create_task(budget.take(5_000, urgent=True)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        budget.give(first)
        assert await waiting[1]
        waiting[2].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        budget.give(await waiting[1])
        assert budget.used == 0

    asyncio.run(scenario())
