"""The socket on which runners report.

It is encrypted, with a certificate whose fingerprint stands in the spool. A runner and the agent prove to each other
that they know the job's secret, then the runner may speak for its one start. Frames and proofs are described in
:mod:`slurmbus_agent.runner.protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from ssl import SSLError
from typing import Any, Protocol

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.link_tls import LinkKeys
from slurmbus_agent.link_wire import Budget, PeerGone, Traffic, Wire
from slurmbus_agent.runner import frames
from slurmbus_agent.runner.protocol import NEWS_SINCE, OPTIONAL, SAMPLES_SINCE
from slurmbus_agent.spool_files import EndReport, LinkAddress
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import Live, NonNegative, Start, Ulid
from slurmbus_protocol.subjects import Stream

__all__ = ["EndReport", "LinkAddress", "LinkServer", "LinkSink", "Welcome"]

log = logging.getLogger(__name__)

GREETING_WITHIN = 5.0
"""Seconds in which a runner must have proved itself."""
STRANGERS = 256
"""Connections that haven't proved themselves, at once; more wait in the kernel."""
ALIVE_EVERY = 5.0
"""Seconds between two signs of life to runners that wait for an answer; they give up after 15."""
_BACKLOG = 1024
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Welcome:
    """What a runner may send."""

    offsets: Mapping[str, int]
    """Where each stream goes on; 0 when it isn't named."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Up to where a stream is wanted in full; beyond it only samples are."""


class LinkSink(Protocol):
    """Takes what runners report.

    For one start the order is: ``hello``, then ``started``, ``ended`` and ``chunk`` (one at a time for each stream, in
    order, the streams beside each other), then ``lost``; a second connection of the same start waits until then.
    Everything may be repeated on the next connection. A SlurmbusError from a call ends the connection; the runner
    comes again, with back-off.
    """

    async def hello(self, key: str, task: int, start: Start) -> Welcome | None:
        """Say what is wanted, or None to refuse the start."""
        ...

    async def chunk(self, key: str, task: int, start: int, stream: Stream, offset: int, data: bytes) -> int:
        """Come back when the bytes are taken care of, with the next offset that is wanted (any, also an earlier one).

        Beyond the stream's limit bytes may be left out before ``offset``.
        """
        ...

    async def started(self, key: str, task: int, start: int, started_at: float) -> None:
        """Hear that the payload runs."""
        ...

    async def ended(self, key: str, task: int, start: int, end: EndReport) -> None:
        """Hear that the payload ended; the last chunks may still follow. The runner waits for this to come back."""
        ...

    async def live(self, key: str, task: int, start: int, live: Live) -> None:
        """Hear what the job uses."""
        ...

    async def facts(self, key: str, task: int, start: int, facts: Mapping[str, str]) -> None:
        """Hear what the launcher has found out; comes back when that is durable."""
        ...

    def lost(self, key: str, task: int, start: int) -> None:
        """Hear that the connection is gone; every chunk that had arrived was handed over before."""
        ...


class _Hello(msgspec.Struct, frozen=True, kw_only=True):
    key: Ulid
    task: NonNegative
    start: NonNegative
    job_id: NonNegative
    node: str
    nonce: str
    claimed_at: float
    version: NonNegative = 1
    task_job_id: NonNegative | None = None


class _Chunk(msgspec.Struct, frozen=True, kw_only=True):
    stream: Stream
    offset: NonNegative
    round: NonNegative


class _Started(msgspec.Struct, frozen=True, kw_only=True):
    started_at: float


class _Ended(msgspec.Struct, frozen=True, kw_only=True):
    end: EndReport


class _Live(msgspec.Struct, frozen=True, kw_only=True):
    live: Live


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    facts: dict[str, str]


_News = _Started | _Ended | _Live | _Facts
_NEWS: dict[str, type[_News]] = {"started": _Started, "ended": _Ended, "live": _Live, "facts": _Facts}


class _Dropped(Exception):
    """A connection isn't worth keeping; the message is the reason under which it is counted."""


class LinkServer:
    """Listens for runners.

    Args:
        sink: takes what they report.
        secrets: gives the secret of (key, task), or None when there is no such job; must not block for long.
        host: the address to listen on.
        budget_bytes: how many bytes may be under way to the sink, over all connections.
        advertise: the names or addresses under which compute nodes reach this host; its interfaces' when empty.
        epoch: stands in the address, for people.
        traffic: is counted up.
        keys: what runners are shown; made by :meth:`start` when there are none.
    """

    def __init__(
        self,
        sink: LinkSink,
        secrets: Callable[[str, int], bytes | None],
        host: str = "0.0.0.0",  # noqa: S104 - runners come from other hosts, and prove themselves
        budget_bytes: int = budgets.LINK_BYTES,
        *,
        advertise: Sequence[str] = (),
        epoch: int = 0,
        traffic: Traffic | None = None,
        keys: LinkKeys | None = None,
    ) -> None:
        self._keys = keys
        self._sink = sink
        self.traffic = traffic or Traffic()
        self._secrets = secrets
        self._host = host
        self._advertise = tuple(advertise)
        self._epoch = epoch
        self._server = token_hex(16)
        self._budget = Budget(budget_bytes)
        self._strangers = asyncio.Semaphore(STRANGERS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: set[socket.socket | Wire] = set()
        self._wires: set[Wire] = set()
        self._came = asyncio.Event()
        self._sessions: dict[tuple[str, int, int], _Session] = {}
        self.address: LinkAddress | None = None
        """Where runners reach us, while we listen."""
        self.dropped: Counter[str] = Counter()
        """Connections that weren't worth keeping, by reason."""

    @property
    def connections(self) -> int:
        """How many runners are connected and have proved themselves."""
        return len(self._sessions)

    @property
    def in_flight(self) -> int:
        """Bytes in memory that have arrived and aren't acknowledged."""
        return self._budget.used

    async def start(self) -> LinkAddress:
        """Listen, and give the address for :meth:`slurmbus_agent.spool.Spool.write_link`.

        Raises the process's soft limit of open files to the hard one: each runner is one.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        keys = self._keys = self._keys or await LinkKeys.make()
        listener = socket.create_server((self._host, 0), backlog=_BACKLOG)
        listener.settimeout(0)
        self._links.add(listener)
        self._spawn(self._accept(listener, keys), "link: accepting")
        self._spawn(self._show_life(), "link: signs of life")
        everywhere = self._host == "0.0.0.0"  # noqa: S104 - compared, not listened on
        hosts = self._advertise or (addresses() if everywhere else (self._host,))
        port = listener.getsockname()[1]
        self.address = LinkAddress(
            hosts=hosts, port=port, server=self._server, epoch=self._epoch, fingerprint=keys.fingerprint
        )
        return self.address

    async def aclose(self) -> None:
        """Let go of all runners: they look for the next agent in the spool's file ``link``."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self._links:
            link.close()
        self._links.clear()
        self.address = None

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("link: a connection ended by an error of our own", exc_info=error)

    # ------------------------------------------------------------------ connections

    async def _accept(self, listener: socket.socket, keys: LinkKeys) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._strangers.acquire()
            try:
                link, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._strangers.release()
                log.warning("link: no connection can be taken: %s", error)
                await asyncio.sleep(1.0)
                continue
            self._spawn(self._serve(link, keys), "link: a runner")

    async def _serve(self, link: socket.socket, keys: LinkKeys) -> None:
        try:
            wire = Wire(link, keys, self.traffic)
        except OSError:  # it is gone again
            self._strangers.release()
            self._drop("gone")
            link.close()
            return
        self._links.add(wire)
        try:
            hello = await self._identify(wire)
            if hello is not None:
                await self._attend(wire, hello)
        finally:
            self._links.discard(wire)
            wire.close()

    async def _identify(self, wire: Wire) -> _Hello | None:
        """Find out who is there; None when it isn't one of ours."""
        try:
            async with asyncio.timeout(GREETING_WITHIN):
                return await self._greet(wire)
        except TimeoutError:
            self._drop("silent")
        except (frames.BadFrame, msgspec.ValidationError) as error:
            self._drop("garbage", error)
        except PeerGone:
            self._drop("gone")
        except _Dropped as error:
            self._drop(str(error))
        finally:
            self._strangers.release()
        return None

    def _drop(self, reason: str, error: Exception | None = None) -> None:
        self.dropped[reason] += 1
        log.info("link: dropped a connection: %s %s", reason, error or "")

    async def _greet(self, wire: Wire) -> _Hello:
        """Let both sides prove themselves, and give the start that the other side may speak for."""
        try:
            await wire.secure()
        except SSLError as error:
            raise _Dropped("no TLS") from error
        line, size = await wire.line()
        header = frames.header_of(line)
        if header.get("type") != "hello" or size:
            raise frames.BadFrame("no hello")
        hello = msgspec.convert(header, _Hello)
        secret = self._secrets(hello.key, hello.task)
        if secret is None:
            raise _Dropped("unknown job")
        challenge = token_hex(16)
        await wire.send(
            "challenge", challenge=challenge, proof=frames.proof(secret, frames.AGENT, self._server, challenge, line)
        )
        answer = await wire.header()
        expected = frames.proof(secret, frames.RUNNER, self._server, challenge, line)
        if answer.get("type") != "proof" or not frames.same(expected, answer.get("proof")):
            raise _Dropped("wrong proof")
        return hello

    async def _attend(self, wire: Wire, hello: _Hello) -> None:
        """Serve a runner until its connection ends; an older connection of the same start ends first."""
        wire.owing += 1
        self._wires.add(wire)
        self._came.set()
        name = (hello.key, hello.task, hello.start)
        session = _Session(self._sink, wire, hello, self._budget)
        try:
            while (older := self._sessions.get(name)) is not None:
                await older.end()
            self._sessions[name] = session
            await session.run()
        except* SlurmbusError as errors:
            self._drop("the agent couldn't take it", errors.exceptions[0])
        except* (frames.BadFrame, msgspec.ValidationError) as errors:
            self._drop("garbage", errors.exceptions[0])
        finally:
            self._wires.discard(wire)
            if self._sessions.get(name) is session:
                del self._sessions[name]
            session.over.set()

    async def _show_life(self) -> None:
        while True:
            if not self._wires:
                self._came.clear()
                await self._came.wait()
            await asyncio.sleep(ALIVE_EVERY)
            waiting = [wire for wire in self._wires if wire.owing]
            with contextlib.suppress(TimeoutError):  # who doesn't read is hung up on
                async with asyncio.timeout(ALIVE_EVERY), asyncio.TaskGroup() as group:
                    for wire in waiting:
                        group.create_task(wire.send("alive"))


class _Session:
    """One runner's connection, from its welcome on."""

    def __init__(self, sink: LinkSink, wire: Wire, hello: _Hello, budget: Budget) -> None:
        self._sink = sink
        self._wire = wire
        self._hello = hello
        self._budget = budget
        self._about = (hello.key, hello.task, hello.start)
        self._held = 0
        self._queues: dict[str, asyncio.Queue[_Item | None]] = {}
        self._rounds: Counter[Stream] = Counter()
        self._limits: Mapping[str, int] = {}
        self._final_sizes: Mapping[str, int] = {}
        self._has_ended = asyncio.Event()
        self.over = asyncio.Event()

    async def end(self) -> None:
        """Hang up, and come back when everything that had arrived was handed over."""
        self._wire.hang_up()
        await self.over.wait()

    async def run(self) -> None:
        """Serve until the connection ends."""
        hello = self._hello
        start = Start(
            number=hello.start,
            job_id=hello.job_id,
            node=hello.node,
            nonce=hello.nonce,
            started_at=hello.claimed_at,
            task_job_id=hello.task_job_id,
        )
        welcome = await self._sink.hello(hello.key, hello.task, start)
        self._wire.owing -= 1
        if welcome is None:
            await self._wire.send("refused", reason="superseded")
            return
        try:
            await self._welcome(welcome)
            async with asyncio.TaskGroup() as group:
                try:
                    while True:
                        await self._take(group)
                except PeerGone:
                    for queue in self._queues.values():  # what has arrived is still handed over
                        queue.put_nowait(None)
        finally:
            self._budget.give(self._held)
            self._sink.lost(*self._about)

    async def _welcome(self, welcome: Welcome) -> None:
        self._limits = welcome.limits
        fields: dict[str, Any] = {"offsets": dict(welcome.offsets)}
        if welcome.limits:
            sample = {"bytes": budgets.SAMPLE_BYTES, "every": budgets.SAMPLE_EVERY}
            fields |= {"limits": dict(welcome.limits), "sample": sample}
        if self._hello.version >= NEWS_SINCE:
            fields["takes"] = sorted(OPTIONAL)
        await self._wire.send("welcome", **fields)

    async def _take(self, group: asyncio.TaskGroup) -> None:
        """Take one frame; the streams and the news are worked off beside each other."""
        line, size = await self._wire.line()
        header = frames.header_of(line)
        kind = header.get("type")
        self._wire.owing += 1
        if kind == "chunk" and size:
            chunk = msgspec.convert(header, _Chunk)
            cost = await self._reserve(size, urgent=chunk.stream is Stream.MESSAGES)
            self._queue(group, chunk.stream).put_nowait((cost, chunk, await self._wire.data(size)))
        elif kind in _NEWS and not size:
            news: _News = msgspec.convert(header, _NEWS[kind])
            if isinstance(news, _Ended):
                self._final_sizes = news.end.sizes
                self._has_ended.set()
            self._queue(group, "news").put_nowait((await self._reserve(0, urgent=True), news, b""))
        else:
            raise frames.BadFrame(f"an unexpected {kind}")

    async def _reserve(self, size: int, *, urgent: bool) -> int:
        cost = await self._budget.take(size, urgent=urgent)
        self._held += cost
        return cost

    def _queue(self, group: asyncio.TaskGroup, name: str) -> asyncio.Queue[_Item | None]:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = asyncio.Queue()
            group.create_task(self._work_off(queue))
        return queue

    async def _work_off(self, queue: asyncio.Queue[_Item | None]) -> None:
        while (item := await queue.get()) is not None:
            cost, what, data = item
            del item
            end, following = 0, None
            if not isinstance(what, _Chunk):
                await self._tell(what)
            elif what.round == self._rounds[what.stream]:  # else sent before the runner knew that others are wanted
                end = what.offset + len(data)
                following = await self._sink.chunk(*self._about, what.stream, what.offset, data)
            del data  # an idle connection holds no bytes
            self._held -= cost
            self._budget.give(cost)
            if isinstance(what, _Chunk) and following is not None:
                await self._acknowledge(what.stream, end, following)
            self._wire.owing -= 1

    async def _acknowledge(self, stream: Stream, end: int, following: int) -> None:
        limit = self._limits.get(stream, end)
        if self._hello.version < SAMPLES_SINCE and end > limit <= following:
            following = await self._paced(stream, following)
        if following != end:
            self._rounds[stream] += 1
        await self._wire.send("ack", stream=stream, end=end, next=following, round=self._rounds[stream])

    async def _paced(self, stream: Stream, following: int) -> int:
        """Slow down a runner that doesn't know limits; when its payload has ended, let it skip what is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(budgets.SAMPLE_EVERY):
                await self._has_ended.wait()
        return max(following, self._final_sizes.get(stream, 0))

    async def _tell(self, news: _News) -> None:
        match news:
            case _Started():
                await self._sink.started(*self._about, news.started_at)
            case _Ended():
                await self._sink.ended(*self._about, news.end)
            case _Live():
                await self._sink.live(*self._about, news.live)
            case _Facts():
                await self._sink.facts(*self._about, news.facts)
        await self._wire.send("noted", what=type(news).__name__[1:].lower())


_Item = tuple[int, _Chunk | _News, bytes]


def addresses() -> tuple[str, ...]:
    """Give the IPv4 addresses of this host's interfaces, loopback last.

    Addresses, because a runner that waits for a name server can't look after its payload.
    """
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    return tuple(sorted(found, key=lambda address: address.startswith("127.")))
