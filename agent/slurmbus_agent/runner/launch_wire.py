"""What a launch and its helpers on the nodes say to each other: JSON objects, one a line, over TCP.

The helper connects. Both sides prove that they know the job's secret before anything else is said::

    < challenge                        random
    > node, address, challenge, proof  the node's name, and the address by which it came
    < proof

Then the launch (<) orders and the helper (>) answers each order once, by its number::

    < order, do="ports", count                      > done, ports
    < order, do="folder", path                      > done             made, private, removed at the end
    < order, do="prepare", commands                 > done             bash ran them; what they export holds from now on
    < order, do="taken", ports                      > done, taken      those that somebody listens on
    < order, do="run", name, argv, env              > done, exit       a program's end: exit code or minus signal
    < order, do="start", name, argv, env, grace     > done             it runs
    < order, do="clear"                             > done             whatever runs was killed, without "ended"
    any order                                       > done, error      it can't be done, in words
                                                    > line, name       a line of a program's output
                                                    > ended, name, exit, tail    of a program that was started
    (the launch closes its side)                    everything is stopped and removed; then the helper closes
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 1024 * 1024
LAUNCH = b"launch"
NODE = b"node"


class Broken(Exception):
    """The other side is gone, or isn't who it should be."""


class Wire:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._rest = b""
        self.waiting: list[dict[str, Any]] = []
        """Messages that came together with one that was waited for; :meth:`receive` gives them first."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            ("TCP_KEEPIDLE", 5),
            ("TCP_KEEPINTVL", 2),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 10000),
        ):
            with suppress(AttributeError, OSError):  # then a host that vanished is noticed later
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **message: Any) -> None:
        """Say something; Broken when nobody is there."""
        try:
            self.socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise Broken(str(error)) from error

    def receive(self) -> list[dict[str, Any]]:
        """Wait for something to come and give the whole messages in it, perhaps none; Broken at the end."""
        if self.waiting:
            taken, self.waiting = self.waiting, []
            return taken
        try:
            data = self.socket.recv(65536)
        except OSError as error:
            raise Broken(str(error)) from error
        if not data:
            raise Broken("the connection was closed")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            raise Broken("a line without an end")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError as error:
            raise Broken("a line that isn't JSON") from error
        if not all(isinstance(message, dict) for message in messages):
            raise Broken("a line that isn't an object")
        return messages

    def receive_one(self) -> dict[str, Any]:
        """Wait for one message."""
        messages: list[dict[str, Any]] = []
        while not messages:
            messages = self.receive()
        self.waiting = messages[1:]
        return messages[0]

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def challenge() -> str:
    """Give something that nobody said before."""
    return os.urandom(16).hex()


def proof(secret: bytes, role: bytes, node: str, first: str, second: str) -> str:
    """Prove that one knows the secret, in this role, on this connection."""
    said = b"\n".join((b"slurmbus-launch-1", role, node.encode(), first.encode(), second.encode()))
    return hmac.new(secret, said, hashlib.sha256).hexdigest()


def same(one: str, other: object) -> bool:
    """Compare two proofs without telling by the time where they differ."""
    return isinstance(other, str) and hmac.compare_digest(one.encode(), other.encode())
