"""A small server of metrics for Prometheus, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from slurmbus.bearer import Bearer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def serve_metrics(collector: Collector, host: str, port: int, bearer: Bearer | None) -> WSGIServer:
    """Begin to serve; ``shutdown`` and ``server_close`` end it.

    Args:
        collector: what is served.
        host: where to listen.
        port: 0 is a free one.
        bearer: who may ask; None lets in everybody.

    Raises:
        OSError: the address can't be listened on.
    """
    (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)

    class Server(ThreadingWSGIServer):
        address_family = family

    app = make_wsgi_app(collector)
    server = make_server(
        str(address[0]), port, app if bearer is None else _guarded(app, bearer), Server, handler_class=_Silent
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _guarded(app: WSGIApplication, bearer: Bearer) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if bearer.fits(environ.get("HTTP_AUTHORIZATION")):
            return app(environ, start)
        start("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [b"the token of 'slurmbus metrics' is missing or another one\n"]

    return answer


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing of single requests."""
