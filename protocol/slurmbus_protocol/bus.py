"""One supervised connection to the bus.

nats-py's client can end up connected but deaf (an exception inside its read loop), closed for ever, or half open for
minutes. Nothing durable lives in it, so :class:`Bus` simply builds a new one whenever the old one fails a probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from ssl import SSLContext, SSLError, create_default_context
from typing import Any, Self

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from slurmbus_protocol.dialling import Address, Tls, dial
from slurmbus_protocol.errors import (
    BusFull,
    BusNotStoring,
    BusRefused,
    BusUnreachable,
    InvalidSetting,
    SlurmbusError,
)

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 5.0
PING_INTERVAL = 5  # with two missed pings a half-open connection is noticed within 15 s
PROBE_TIMEOUT = 3.0
RETRY_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)
NOT_OURS = "another server answers there, or its authority is a new one: fetch the site's file again"

_REFUSED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"")
_WRONG_LAST_SEQUENCE = {10071, 10164}
_NOT_NOW = 503
_FULL = {10023, 10028, 10047, 10077, 10122}

Handler = Callable[[Msg], Awaitable[None]]


class WrongSequence(SlurmbusError):
    """The subject's last message isn't the expected one: somebody else wrote, or our own earlier write arrived."""

    code = "wrong-sequence"


@dataclass(frozen=True, slots=True)
class BusSettings:
    """How to reach the bus. ``nkey_seed`` is the text of an NKEY user seed (``SU…``)."""

    servers: tuple[str, ...]
    """Addresses, tried in this order; see :class:`slurmbus_protocol.dialling.Address`."""
    nkey_seed: str | None = None
    ca_file: Path | None = None
    inbox: str = "_INBOX"
    name: str = "slurmbus"
    probe_interval: float | None = None
    """Seconds between two looks whether a quiet connection still works; None looks only when an answer is missing."""
    ca: str | None = None
    """The pinned authority as PEM. With it, or ``ca_file``, every connection is encrypted, whatever its address."""
    tls_name: str | None = None
    """The name that the server's certificate must bear; None is the address's host."""
    ping_interval: int = PING_INTERVAL
    """Seconds between two pings of the client's own; whoever asks something regularly needs them less often."""

    def tls(self) -> SSLContext | None:
        """Give the TLS context for servers with a pinned authority, or None."""
        if self.ca_file is None and self.ca is None:
            return None
        try:
            return create_default_context(cafile=self.ca_file, cadata=self.ca)
        except OSError as error:
            what = f"ca_file {self.ca_file}" if self.ca_file else "the bus's certificate authority"
            raise InvalidSetting(f"{what} can't be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as a stream keeps it."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    sequence: int
    time: float
    """When the bus stored it, in seconds since 1970 by the bus's clock."""


class Bus:
    """A connection that is rebuilt when it is deaf or closed; use it as an async context manager."""

    def __init__(self, settings: BusSettings) -> None:
        self.settings = settings
        self._client: Client | None = None
        self._services: dict[str, Handler] = {}
        self._probes: dict[str, asyncio.Future[None]] = {}
        self._probe_subject = ""
        self._rebuilding = asyncio.Lock()
        self._wake = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._rebuilt = asyncio.Event()
        self._refused: set[tuple[str, str]] = set()
        """What this user may not do, and where; nats-py gives the server's words in lower case."""
        self._failure: BusUnreachable | None = None
        """Why there is no connection."""
        self._unanswered: set[str] = set()
        """Kinds of subjects on which a publish wasn't acknowledged, and none was since."""
        self._not_storing: set[str] = set()
        """Those for which it wasn't the connection's fault: nats-server 2.15 never answers again when its disk was full
        as it wrote to a stream; other streams may go on."""
        self._traffic = (0, 0)
        """Of the connections before this one."""
        self.connections = 0
        """How often a connection was made."""

    async def __aenter__(self) -> Self:
        """Connect once, or raise BusUnreachable; afterwards the connection is kept up by itself."""
        await self._rebuild()
        self._supervisor = asyncio.create_task(self._supervise(), name="bus supervisor")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        if self._supervisor:
            await _end(self._supervisor)
        await self._discard(self._client)
        self._client = None

    @property
    def connected(self) -> bool:
        """True while the client believes that it is connected."""
        return self._client is not None and self._client.is_connected

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of messages that came in and went out, over all connections."""
        received, sent = self._traffic
        if self._client is not None:
            received += self._client.stats["in_bytes"]
            sent += self._client.stats["out_bytes"]
        return received, sent

    @property
    def problem(self) -> str:
        """Why nothing can be published, as far as that is known; empty when nothing is wrong."""
        if self._failure is not None:
            return self._failure.message
        return BusNotStoring().message if self._not_storing else ""

    async def next_connection(self, seen: int) -> int:
        """Wait until there were more than ``seen`` connections (maybe to another server), and give their number."""
        while self.connections <= seen:
            self._rebuilt.clear()
            await self._rebuilt.wait()
        return self.connections

    # ------------------------------------------------------------------ supervision

    async def _connect(self) -> Client:
        failures: list[BusUnreachable] = []
        for server in self.settings.servers:
            try:
                return await self._connect_to(Address.parse(server))
            except BusUnreachable as error:
                failures.append(error)
        where = f"no connection to {', '.join(self.settings.servers)}: "
        if not failures:
            raise BusUnreachable(f"{where}there is no address")
        told = next((error for error in failures if isinstance(error, BusRefused)), failures[0])
        raise type(told)(where + told.message, hint=told.hint) from told

    async def _connect_to(self, address: Address) -> Client:
        """Connect to one address; BusUnreachable or BusRefused with the reason alone."""
        pinned = self.settings.tls()
        context = pinned or (create_default_context() if address.encrypted else None)
        tls = Tls(context, self.settings.tls_name) if context else None
        client = Client()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                # nats-py has no way to hand over a connection, and takes the one that is there.
                client._transport = await dial(address, tls)  # noqa: SLF001
                await self._greet(client, address, tls)
        except SSLError as error:
            raise BusUnreachable(f"TLS failed: {error}", hint=NOT_OURS if pinned else "") from error
        except (OSError, TimeoutError, nats.errors.Error) as error:
            reason = str(error) or ("no answer" if isinstance(error, TimeoutError) else type(error).__name__)
            kind = BusRefused if "authorization" in reason.lower() else BusUnreachable
            raise kind(reason) from error
        finally:
            if not client.is_connected:
                await self._discard(client)
        return client

    async def _greet(self, client: Client, address: Address, tls: Tls | None) -> None:
        """Let nats-py take over a fresh connection."""

        async def on_error(error: Exception) -> None:
            log.debug("bus: %s", error)
            if (violation := _REFUSED.search(str(error).lower())) is not None:
                log.warning("bus: %s", error)
                self._refused.add((violation[1], violation[2]))

        async def on_change() -> None:
            self._wake.set()

        connecting = asyncio.create_task(
            client.connect(
                servers=[address.url],
                name=self.settings.name,
                error_cb=on_error,
                closed_cb=on_change,
                disconnected_cb=on_change,
                allow_reconnect=False,  # rebuilding is the supervisor's; both at once get into each other's way
                max_reconnect_attempts=-1,
                connect_timeout=2,
                ping_interval=self.settings.ping_interval,
                max_outstanding_pings=2,
                pending_size=0,
                inbox_prefix=self.settings.inbox,
                nkeys_seed_str=self.settings.nkey_seed,
                tls=tls.context if tls else None,
            )
        )
        try:
            await asyncio.wait({connecting})
        finally:
            if not connecting.done():
                await _end(connecting)
        connecting.result()

    @staticmethod
    async def _discard(client: Client | None) -> None:
        if client is None or client.is_closed:
            return
        with contextlib.suppress(Exception):  # whatever a broken client says when it is thrown away
            async with asyncio.timeout(1.0):
                await client.close()

    async def _rebuild(self) -> None:
        async with self._rebuilding:
            self._traffic = self.traffic
            old, self._client = self._client, None
            await self._discard(old)
            self._refused.clear()
            client = await self._connect()
            self._probe_subject = f"{self.settings.inbox}.probe.{secrets.token_hex(8)}"
            try:
                await client.subscribe(self._probe_subject, cb=self._on_probe)
                for subject, handler in self._services.items():
                    await client.subscribe(subject, cb=_never_raises(handler))
            except (OSError, nats.errors.Error) as error:  # closed again at once, e.g. because our key was revoked
                await self._discard(client)
                raise BusUnreachable(f"the connection was closed again at once: {error}") from error
            self._client = client
            self._failure = None
            self._unanswered.clear()
            self._not_storing.clear()
            self.connections += 1
            self._rebuilt.set()

    async def _on_probe(self, msg: Msg) -> None:
        future = self._probes.pop(msg.data.decode(errors="replace"), None)
        if future and not future.done():
            future.set_result(None)

    async def probe(self) -> bool:
        """Send a message to ourselves and see whether it arrives: the only proof that the read loop lives."""
        client = self._client
        if client is None or not client.is_connected:
            return False
        token = secrets.token_hex(8)
        self._probes[token] = future = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await client.publish(self._probe_subject, token.encode())
                await future
        except (TimeoutError, OSError, nats.errors.Error):
            return False
        finally:
            self._probes.pop(token, None)
        return True

    def suspect(self) -> None:
        """Say that an answer didn't come; the supervisor looks at once whether the connection is to blame."""
        self._wake.set()

    async def _supervise(self) -> None:
        attempt = 0
        while True:
            if attempt == 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.settings.probe_interval):
                        await self._wake.wait()
            else:
                await asyncio.sleep(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS)) - 1])
            self._wake.clear()
            if await self.probe():
                attempt = 0
                self._not_storing |= self._unanswered
                continue
            try:
                await self._rebuild()
                attempt = 0
            except BusUnreachable as error:
                attempt += 1
                self._failure = error
                log.debug("bus: %s", error)

    def _connected_client(self) -> Client:
        if self._client is not None:
            return self._client
        if self._failure is None:
            raise BusUnreachable("not connected")
        raise type(self._failure)(self._failure.message, hint=self._failure.hint)

    def _refusal(self, subject: str) -> BusRefused | None:
        """Tell whether an answer didn't come because this user may not ask: a refused question isn't answered."""
        if ("publish", subject.lower()) in self._refused:
            return BusRefused(f"the bus doesn't let this user publish to {subject}")
        for action, refused in self._refused:
            if action == "subscription" and refused.startswith(self.settings.inbox.lower()):
                return BusRefused(f"the bus doesn't let this user subscribe to {refused}, so no answer can arrive")
        return None

    # ------------------------------------------------------------------ talking

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Msg:
        """Ask and wait for one answer; BusUnreachable when none comes in ``timeout`` seconds."""
        client = self._connected_client()
        try:
            with _cancellable():
                return await client.request(subject, data, timeout=timeout, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise BusUnreachable(f"nobody answers on {subject}", hint="") from error
        except (TimeoutError, OSError, nats.errors.Error) as error:
            refusal = self._refusal(subject)
            if refusal is not None:
                raise refusal from error
            self.suspect()
            reason = str(error) or type(error).__name__
            raise BusUnreachable(f"no answer on {subject}: {reason}") from error

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        expected_last: int | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> int:
        """Publish into a stream and return the sequence under which it is durable.

        Args:
            subject: of one of the streams.
            data: the message.
            headers: sent along.
            expected_last: refuse unless the subject's last sequence is this one; 0 means that there is none.
            timeout: seconds until the outcome counts as unknown; the message may still be stored later.

        Raises:
            WrongSequence: the subject's last message is another one.
            BusFull: the stream has reached its limit.
            BusUnreachable: the outcome is unknown.
            BusNotStoring: likewise, and the bus doesn't seem to be able to store anything.
        """
        sent = dict(headers or {})
        if expected_last is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expected_last)
        kind = _kind(subject)
        try:
            answer = await self.request(subject, data, headers=sent or None, timeout=timeout)
        except BusUnreachable as error:
            if not isinstance(error.__cause__, TimeoutError) or isinstance(error, BusRefused):
                raise
            self._unanswered.add(kind)
            if kind in self._not_storing:
                raise BusNotStoring(f"the bus answers, but doesn't store what is sent on {subject}") from error
            raise
        self._unanswered.discard(kind)
        self._not_storing.discard(kind)
        return int(_checked(answer, subject)["seq"])

    async def publish_until_acknowledged(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        expected_last: int | None = None,
        patience: float = 30.0,
    ) -> int | None:
        """Publish again until the bus has acknowledged it; None when the expected sequence had moved on.

        With ``expected_last=0`` that means "it is there": an earlier attempt was stored, or somebody else was first.
        BusUnreachable after ``patience`` seconds; BusRefused at once.
        """
        deadline = asyncio.get_running_loop().time() + patience
        attempt = 0
        while True:
            try:
                return await self.publish(subject, data, headers=headers, expected_last=expected_last, timeout=2.0)
            except WrongSequence:
                return None
            except BusRefused:
                raise
            except BusUnreachable:
                delay = RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)]
                attempt += 1
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    raise
                await asyncio.sleep(min(delay, left))

    async def last(self, stream: str, subject: str, *, timeout: float = REQUEST_TIMEOUT) -> Stored | None:
        """Read the last message of a subject, or None when there is none."""
        answer = await self.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", timeout=timeout)
        return _stored(answer)

    async def api(self, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call JetStream's JSON interface and return its answer; ApiError with the server's own words."""
        data = json.dumps(body).encode() if body is not None else b""
        answer = await self.request(f"$JS.API.{verb}", data)
        return _checked(answer, verb)

    async def serve(self, subject: str, handler: Handler) -> None:
        """Answer questions on a subject, also after the connection was rebuilt."""
        self._services[subject] = handler
        if self._client is not None:
            with contextlib.suppress(OSError, nats.errors.Error):  # the next connection subscribes to it
                await self._client.subscribe(subject, cb=_never_raises(handler))

    async def respond(self, msg: Msg, data: bytes) -> None:
        """Answer a question; nothing happens when the asker is gone."""
        client = self._client
        if client is None or not msg.reply:
            return
        with contextlib.suppress(OSError, nats.errors.Error):
            await client.publish(msg.reply, data)

    async def tell(self, subject: str, data: bytes, *, reply: str = "") -> None:
        """Publish without an acknowledgement; BusUnreachable when not connected."""
        client = self._connected_client()
        try:
            with _cancellable():
                await client.publish(subject, data, reply=reply)
        except (OSError, nats.errors.Error) as error:
            raise BusUnreachable(f"can't publish on {subject}: {error}") from error

    @contextlib.asynccontextmanager
    async def inbox(self) -> AsyncIterator[tuple[str, Subscription]]:
        """Give a fresh inbox and its subscription."""
        client = self._connected_client()
        subject = client.new_inbox()
        try:
            subscription = await client.subscribe(subject)
        except (OSError, nats.errors.Error) as error:
            raise BusUnreachable(f"can't subscribe: {error}") from error
        try:
            yield subject, subscription
        finally:
            with contextlib.suppress(OSError, nats.errors.Error):
                await subscription.unsubscribe()


class ApiError(SlurmbusError):
    """JetStream refused a call."""

    code = "bus-api"

    def __init__(self, message: str, number: int) -> None:
        """Keep the server's error number (its ``err_code``)."""
        super().__init__(message)
        self.number = number


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: nats-py's connect and close may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.exception()  # seen


@contextlib.contextmanager
def _cancellable() -> Iterator[None]:
    """Let a cancellation through that nats-py swallows while it waits for a message to be flushed.

    Whoever cancels a task that renews a lease, say, would else wait for its end for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


def _kind(subject: str) -> str:
    """Tell which stream keeps a subject, by the part of it that says so."""
    tokens = subject.split(".")
    return tokens[3] if tokens[0] == "slurmbus" and len(tokens) > 3 else tokens[0]  # noqa: PLR2004 - see subjects


def _checked(answer: Msg, what: str) -> dict[str, Any]:
    try:
        body = json.loads(answer.data)
    except ValueError as error:
        raise BusUnreachable(f"{what}: the answer isn't JetStream's") from error
    if not isinstance(body, dict):
        raise BusUnreachable(f"{what}: the answer isn't JetStream's")
    error_body = body.get("error")
    if not error_body:
        return body
    number, words = int(error_body.get("err_code", 0)), str(error_body.get("description", ""))
    if number in _WRONG_LAST_SEQUENCE:
        raise WrongSequence(f"{what}: {words}")
    if number in _FULL or "maximum" in words:
        raise BusFull(f"{what}: {words}")
    if int(error_body.get("code", 0)) == _NOT_NOW:  # JetStream is starting, or short of something that comes back
        raise BusUnreachable(f"{what}: {words}")
    raise ApiError(f"{what}: {words}", number)


def _stored(answer: Msg) -> Stored | None:
    headers = answer.headers or {}
    status = headers.get("Status")
    if status == "404":
        return None
    if status is not None:
        raise ApiError(f"direct get: {status} {headers.get('Description', '')}", int(status))
    return Stored(
        subject=headers["Nats-Subject"],
        data=answer.data,
        headers=headers,
        sequence=int(headers["Nats-Sequence"]),
        time=parse_time(headers["Nats-Time-Stamp"]),
    )


def parse_time(text: str) -> float:
    """Read the server's RFC 3339 time stamps, whose nanoseconds Python's parser doesn't take."""
    head, _, fraction = text.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(f"{head}+00:00").timestamp()
    return seconds + (float(f"0.{fraction}") if fraction else 0.0)


def _never_raises(handler: Handler) -> Handler:
    async def guarded(msg: Msg) -> None:
        try:
            await handler(msg)
        except Exception:  # an exception here would kill nats-py's read loop and leave us deaf
            log.exception("answering %s failed", msg.subject)

    return guarded
