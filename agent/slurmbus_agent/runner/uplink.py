"""The runner's end of the link: connects, proves itself, sends what the streams have, and comes back when it breaks.

Nothing here blocks or waits: the main loop says when the socket is ready or a time has come.
"""

from __future__ import annotations

import json
import os
import select
import socket

from slurmbus_agent.runner import frames
from slurmbus_agent.runner.protocol import MESSAGES, OPTIONAL, STREAMS
from slurmbus_agent.runner.tls import Encrypted, client_context, say_no_tls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext
    from typing import Any, Union

    from slurmbus_agent.runner.notify import Notifier
    from slurmbus_agent.runner.plan import Plan
    from slurmbus_agent.runner.streams import Stream

CONNECT_WITHIN = 2.0
"""Seconds for one address; the next one is tried then."""
GREET_WITHIN = 3.0
"""Seconds for an address to prove that the agent is there; something else may listen at one of them."""
SILENCE = 15.0
"""Seconds without a word from an agent that owes us one, until it counts as frozen or cut off."""
STALLED = 10.0
"""Seconds without progress until the spool is asked whether another agent has taken over."""
BACK_OFF = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
KEEPALIVE = ((socket.TCP_KEEPIDLE, 8), (socket.TCP_KEEPINTVL, 3), (socket.TCP_KEEPCNT, 2))
"""The kernel notices a dead host within 14 s at no cost to either process."""
_RECEIVE = 16 * 1024


class LinkBroken(Exception):
    """This connection is of no use any more."""


class Uplink:
    """The link of one start; ``hello`` are the fields of that frame."""

    def __init__(
        self, plan: Plan, hello: dict[str, Any], streams: list[Stream], notifier: Notifier, now: float
    ) -> None:
        self._plan = plan
        self._hello = hello
        self._streams = streams
        self._notifier = notifier
        self._socket: socket.socket | None = None
        self._context: Union[SSLContext, None] = None
        self._encrypted: Union[Encrypted, None] = None
        self._stage = ""
        self._hosts: list[str] = []
        self._host = self._proven_host = ""
        self._port = 0
        self._server = self._fingerprint = ""
        self._link_file: tuple[int, int] | None = None
        self._out: list[memoryview] = []
        self._in = bytearray()
        self._said_hello = b""
        self._news: dict[str, dict[str, Any]] = {}
        self._told: set[str] = set()
        self._later: dict[str, dict[str, Any]] = {}
        self._takes: frozenset[str] = frozenset()
        self._attempt = 0
        self._heard_at = now
        self._retry_at = now if plan.link else float("inf")
        self.moved_at = now
        """When the agent last took something over."""
        self.refused = False
        """The agent says that there is a later start; look for it."""
        self.failures = 0

    # ------------------------------------------------------------------ what the main loop asks

    @property
    def up(self) -> bool:
        """True while the agent listens."""
        return self._stage == "up"

    @property
    def owed(self) -> bool:
        """True while the agent owes us an answer."""
        return self._stage not in {"", "up"} or bool(self._told) or any(stream.owed for stream in self._streams)

    @property
    def trying(self) -> bool:
        """True between the first step of a connection and its end."""
        return self._socket is not None

    def finished(self) -> bool:
        """Tell whether the agent has everything: all news and all bytes."""
        return not self._news and not self._later and all(stream.done() for stream in self._streams)

    def interest(self) -> tuple[int, int] | None:
        """Give the descriptor and the poll events that matter now."""
        if self._socket is None:
            return None
        if self._stage == "connecting":
            return self._socket.fileno(), select.POLLOUT
        if self._stage == "securing" and self._encrypted is not None:
            return self._socket.fileno(), self._encrypted.waits_for
        return self._socket.fileno(), select.POLLIN | (select.POLLOUT if self._out else 0)

    def due(self) -> float:
        """Give the time at which :meth:`work` has something to do, even if nothing happens before."""
        if self._socket is None:
            return self._retry_at
        if self._stage == "connecting":
            return self._heard_at + CONNECT_WITHIN
        silent_at = self._silent_at()
        if not self.up or self._out:
            return silent_at
        return min([silent_at, *(stream.due() for stream in self._streams)])

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a frame once on every connection until the agent has noted it; of each kind the newest."""
        news = self._later if kind in self._told else self._news
        news[kind] = {"type": kind, **fields}

    def withdraw(self, *kinds: str) -> None:
        """Don't send this any more: something else says it as well."""
        for kind in kinds:
            self._later.pop(kind, None)
            self._news.pop(kind, None)

    def hurry(self) -> None:
        """Try at once instead of waiting for the end of the back-off."""
        if self._plan.link:
            self._retry_at = 0.0

    # ------------------------------------------------------------------ the work

    def work(self, now: float, ready: int) -> None:
        """Do all that can be done now; ``ready`` are the poll events of the socket."""
        try:
            if self._socket is None:
                if now >= self._retry_at:
                    self._begin(now)
                return
            if self._stage == "connecting":
                self._finish_connecting(self._socket, now, ready)
            if self._encrypted is not None:
                if self._stage == "securing":
                    self._secure(self._encrypted)
                elif ready & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._receive(self._encrypted, now)
                self._send(self._encrypted, now)
            self._listen(now)
        except (OSError, LinkBroken, ValueError):  # ValueError: also a host name that can't be looked up
            self._break(now)

    def _silent_at(self) -> float:
        """Give the time at which the agent counts as gone unless it says something."""
        if self._stage in {"securing", "greeting"}:
            return self._heard_at + GREET_WITHIN
        return self._heard_at + SILENCE if self.owed else float("inf")

    def _listen(self, now: float) -> None:
        if now > self._silent_at():
            raise LinkBroken("silence")

    def look_for_another(self, now: float) -> None:
        """Leave for the agent that has taken over, if one has; asks the file server only when this one is stuck."""
        if self._socket is None:
            return
        try:
            if not (self.owed and now - self.moved_at > STALLED) and self._stamp() == self._link_file:
                return
            if self._read_address()[2] != self._server:  # the fingerprint goes with it
                self._break(now)
                self._retry_at = now
        except (OSError, LinkBroken):
            return  # no other address is known

    def _begin(self, now: float) -> None:
        if self._context is None:
            self._context = client_context()
        if self._context is None:
            if not self.failures:
                say_no_tls()
            self._retry_at = float("inf")
            self.failures += 1
            return
        if not self._hosts:
            self._link_file = self._stamp()
            self._hosts, self._port, self._server, self._fingerprint = self._read_address()
            self._hosts.sort(key=lambda host: host != self._proven_host)
        self._host = self._hosts.pop(0)
        family, kind, protocol, _, address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, seconds)
        self._stage = "connecting"
        self._heard_at = now
        self._socket.connect_ex(address)  # its outcome is read when the socket becomes writable

    def _stamp(self) -> tuple[int, int]:
        status = os.stat(self._plan.link)
        return status.st_ino, status.st_mtime_ns

    def _read_address(self) -> tuple[list[str], int, str, str]:
        with open(self._plan.link, "rb") as file:
            content = file.read()
        try:
            address = json.loads(content)
            hosts = [str(host) for host in address["hosts"]]
            return hosts, int(address["port"]), str(address["server"]), str(address["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise LinkBroken(f"the file 'link' has no address: {error}") from error

    def _finish_connecting(self, link: socket.socket, now: float, ready: int) -> None:
        if not ready:
            if now - self._heard_at > CONNECT_WITHIN:
                raise LinkBroken("no answer")
            return
        number = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        if self._context is None:
            raise LinkBroken("no TLS")
        self._encrypted = Encrypted(link, self._context)
        self._socket = self._encrypted.socket
        self._stage = "securing"
        self._heard_at = now

    def _secure(self, link: Encrypted) -> None:
        """Encrypt the connection; whoever hasn't the agent's key hears nothing of us."""
        try:
            fingerprint = link.shake_hands()
        except BlockingIOError:
            return
        if not frames.same(self._fingerprint, fingerprint):
            raise LinkBroken("this isn't the agent")
        self._hello["challenge"] = os.urandom(16).hex()
        frame = frames.pack({"type": "hello", **self._hello})
        self._said_hello = frame[frames.PREFIX :]
        self._out = [memoryview(frame)]
        self._stage = "greeting"

    def _break(self, now: float) -> None:
        """Drop the connection: the next address at once, or all of them again after a while."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._encrypted = None
        was_up, self._stage = self.up, ""
        self._out.clear()
        self._in.clear()
        self._told.clear()
        self._news.update(self._later)
        self._later.clear()
        if was_up:
            self._attempt = 0
            self._hosts = []
        if self._hosts:
            self._retry_at = now
            return
        self.failures += 1
        jitter = 0.75 + int.from_bytes(os.urandom(2), "big") / 2**17  # a thousand runners lose the same agent
        self._retry_at = now + BACK_OFF[min(self._attempt, len(BACK_OFF) - 1)] * jitter
        self._attempt += 1

    # ------------------------------------------------------------------ receiving

    def _receive(self, link: Encrypted, now: float) -> None:
        try:
            data = link.recv(_RECEIVE)
        except BlockingIOError:
            return
        if not data:
            raise LinkBroken("closed")
        self._heard_at = now
        self._in += data
        while len(self._in) >= frames.PREFIX:
            end = frames.PREFIX + frames.length(bytes(self._in[: frames.PREFIX]), frames.MAX_HEADER)
            if len(self._in) < end:
                return
            header = frames.header_of(bytes(self._in[frames.PREFIX : end]))
            del self._in[:end]
            self._take(header, now)

    def _take(self, header: dict[str, Any], now: float) -> None:
        kind = header.get("type")
        try:
            if kind == "alive":
                return
            if kind == "challenge" and self._stage == "greeting":
                self._prove(str(header["challenge"]), header["proof"])
                self._stage = "proving"
                return
            if kind == "welcome" and self._stage == "proving":
                self._welcomed({name: int(header["offsets"].get(name, 0)) for name in STREAMS})
                self._limit(header.get("limits", {}), header.get("sample", {}))
                self._takes = frozenset(header.get("takes", ()))
            elif kind == "refused" and self._stage == "proving":
                self.refused = True
                raise LinkBroken("refused")
            elif kind == "ack" and self.up:
                self._acknowledged(str(header["stream"]), int(header["end"]), int(header["next"]), int(header["round"]))
            elif kind == "noted" and self.up:
                self._noted(str(header["what"]))
            else:
                raise LinkBroken(f"an unexpected {kind}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LinkBroken(f"a bad {kind}: {error}") from error
        self.moved_at = now

    def _prove(self, challenge: str, proof: object) -> None:
        secret = self._plan.secret
        if not frames.same(frames.proof(secret, frames.AGENT, self._server, challenge, self._said_hello), proof):
            raise LinkBroken("this isn't the agent")
        answer = frames.proof(secret, frames.RUNNER, self._server, challenge, self._said_hello)
        self._out.append(memoryview(frames.pack({"type": "proof", "proof": answer})))

    def _welcomed(self, offsets: dict[str, int]) -> None:
        self._stage = "up"
        self._proven_host = self._host
        self._attempt = 0
        self._hosts = []
        for stream in self._streams:
            stream.resume(offsets[stream.name])

    def _limit(self, limits: dict[str, Any], sample: dict[str, Any]) -> None:
        for stream in self._streams:
            if stream.name in limits:
                stream.sample_beyond(int(limits[stream.name]), int(sample["bytes"]), float(sample["every"]))

    def _noted(self, kind: str) -> None:
        self._news.pop(kind, None)
        self._told.discard(kind)
        if kind in self._later:
            self._news[kind] = self._later.pop(kind)

    def _acknowledged(self, name: str, end: int, following: int, number: int) -> None:
        for stream in self._streams:
            if stream.name == name:
                stream.acknowledge(end, following, number)

    # ------------------------------------------------------------------ sending

    def _send(self, link: Encrypted, now: float) -> None:
        """Send until the socket is full or nothing is left; one frame at a time is in memory."""
        while self._out or (self.up and self._next_frame(now)):
            try:
                sent = link.send(self._out[0])
            except BlockingIOError:
                return
            self._out[0] = self._out[0][sent:]
            if not self._out[0]:
                del self._out[0]

    def _next_frame(self, now: float) -> bool:
        if not self.owed:  # from now on there is something to wait for
            self._heard_at = self.moved_at = now
        for kind, header in self._news.items():
            if kind not in self._told and (kind not in OPTIONAL or kind in self._takes):
                self._told.add(kind)
                self._out.append(memoryview(frames.pack(header)))
                return True
        for stream in self._streams:
            found = stream.next_chunk(now, self._notifier.arm)
            if found is not None:
                offset, data = found
                header = {"type": "chunk", "stream": stream.name, "offset": offset, "round": stream.round}
                self._out.append(memoryview(frames.pack(header, len(data))))
                self._out.append(memoryview(data))
                if stream.name != MESSAGES:  # the logs take turns behind the messages
                    self._streams.remove(stream)
                    self._streams.append(stream)
                return True
        return False
