"""The link's encryption from the runner's side: a socket that never blocks, to the agent whose certificate we know."""

from __future__ import annotations

import hashlib
import select
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from ssl import SSLContext
    from typing import Union


def client_context() -> Union[SSLContext, None]:
    """Give what connections are made with; None when this Python can't."""
    try:
        import ssl  # noqa: PLC0415 - 10 ms, and by now the payload runs

        known = ssl.HAS_TLSv1_3
    except ImportError:
        known = False
    if not known:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # its fingerprint is compared instead
    return context


def say_no_tls() -> None:
    """Say in the batch script's output why there is no link."""
    sys.stderr.write("slurmbus: this Python has no TLS 1.3 (module ssl): the agent reads the output from the spool\n")
    sys.stderr.flush()


class Encrypted:
    """A connection that is encrypted once the hands are shaken; what can't be done yet is a BlockingIOError."""

    def __init__(self, link: socket.socket, context: SSLContext) -> None:
        import ssl  # noqa: PLC0415 - it is there, or there would be no context

        self.socket = self._link = context.wrap_socket(link, do_handshake_on_connect=False)
        """What takes the place of ``link``."""
        self._reading, self._writing = ssl.SSLWantReadError, ssl.SSLWantWriteError
        self.waits_for = select.POLLOUT
        """The poll event that the handshake waits for."""

    def shake_hands(self) -> str:
        """Go on with the handshake, and when it is done give the fingerprint of the other side's certificate."""
        with self._not_yet():
            self._link.do_handshake()
        return hashlib.sha256(self._link.getpeercert(binary_form=True) or b"").hexdigest()

    def recv(self, size: int) -> bytes:
        """Give what has come; a record of TLS at most."""
        with self._not_yet():
            return self._link.recv(size)

    def send(self, data: memoryview) -> int:
        """Send as much as goes; the rest must come again."""
        with self._not_yet():
            return self._link.send(data)

    @contextmanager
    def _not_yet(self) -> Iterator[None]:
        try:
            yield
        except self._reading as error:
            self.waits_for = select.POLLIN
            raise BlockingIOError from error
        except self._writing as error:
            self.waits_for = select.POLLOUT
            raise BlockingIOError from error
