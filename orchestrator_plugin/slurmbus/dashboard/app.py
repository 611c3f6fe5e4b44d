"""The HTTP server's routes: the page, its one WebSocket, signing in, and what a person who is signed in may do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from slurmbus.bearer import Bearer
from slurmbus.board import Board
from slurmbus.dashboard.guard import Guard
from slurmbus.dashboard.links import Links
from slurmbus.dashboard.page_feed import PageFeed
from slurmbus.dashboard.partitions import PartitionsOf
from slurmbus.dashboard.sessions import LIFETIME, Session, Sessions
from slurmbus.home import Home
from slurmbus.metrics import Metrics
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol.errors import SlurmbusError

B = TypeVar("B", bound=msgspec.Struct)

STATIC = Path(str(files("slurmbus.dashboard") / "static"))
INDEX = STATIC / "index.html"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)
COOKIE = "slurmbus"
FORGERY_HEADER = "x-slurmbus-page"
MAX_BODY = 4096
NOT_SIGNED_IN = 4401
"""The WebSocket's close code when only who is signed in may look, and when that is over."""


class SignIn(msgspec.Struct, frozen=True):
    """What the page sends to sign in."""

    token: str
    attempt: str = ""
    """The page's own word, by which it may send the same again when the answer was lost."""


class JobWish(msgspec.Struct, frozen=True):
    """Which job is meant."""

    site: str
    key: str
    task: int | None = None


class Dashboard:
    """The routes and what they share.

    Args:
        home: whose sites.
        hosts: the names by which browsers may call the server.
        links: whose tokens let in.
        bearer: who may ask for metrics without having signed in.
        further: other buses to follow.
        private: whether only who is signed in may look.
    """

    def __init__(
        self,
        home: Home,
        hosts: Collection[str],
        links: Links,
        bearer: Bearer,
        further: Collection[ConnectionSettings] = (),
        *,
        private: bool = True,
    ) -> None:
        self._sessions = Sessions(links)
        self._bearer = bearer
        self.board = Board(home, further)
        self._private = private
        self._metrics = Metrics(self.board)
        self._partitions = PartitionsOf(self.board)
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/metrics", self._metrics_page),
                WebSocketRoute("/feed", self._feed),
                Route("/sign-in", self._sign_in, methods=["POST"]),
                Route("/sign-out", self._sign_out, methods=["POST"]),
                Route("/cancel", self._cancel, methods=["POST"]),
                Route("/requeue", self._requeue, methods=["POST"]),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            middleware=[Middleware(Guard, hosts=hosts, scripts=_INLINE.findall(INDEX.read_text()))],
            exception_handlers={SlurmbusError: _told},  # type: ignore[dict-item]  # its subclass is all it is given
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self.board:
            counting = asyncio.create_task(self._metrics.run())
            try:
                yield
            finally:
                counting.cancel()

    async def _page(self, _request: Request) -> Response:
        return FileResponse(INDEX)

    async def _metrics_page(self, request: Request) -> Response:
        signed_in = not self._private or self._session(request) is not None
        if not signed_in and not self._bearer.fits(request.headers.get("authorization")):
            return _problem("this isn't the token of metrics", 401, headers={"WWW-Authenticate": "Bearer"})
        content_type, page = self._metrics.page(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})

    async def _feed(self, socket: WebSocket) -> None:
        session = self._session(socket)
        await socket.accept()
        if self._private and session is None:
            await socket.close(NOT_SIGNED_IN)
            return
        hello = {
            "version": version("dagster-slurmbus"),
            "home": str(self.board.home.path),
            "forgery": session.forgery if session is not None else None,
        }
        feed = PageFeed(socket, self.board, self._partitions, hello)
        if not await feed.serve(lambda: session is None or self._sessions.holds(session)):
            await socket.close(NOT_SIGNED_IN)

    # ------------------------------------------------------------------ signing in

    def _session(self, connection: HTTPConnection) -> Session | None:
        return self._sessions.find(connection.cookies.get(_cookie_name(connection)))

    async def _sign_in(self, request: Request) -> Response:
        wish = await _body(request, SignIn)
        session = self._sessions.sign_in(wish.token, wish.attempt)
        if session is None:
            return _problem(
                "this link was used before, or is too old", 403, "'slurmbus dashboard --link' gives a new one"
            )
        response = JSONResponse({})
        secure = request.url.scheme == "https"
        name = _cookie_name(request)
        response.set_cookie(name, session.cookie, int(LIFETIME), httponly=True, samesite="strict", secure=secure)
        return response

    async def _sign_out(self, request: Request) -> Response:
        self._sessions.sign_out(self._signed_in(request))
        response = JSONResponse({})
        response.delete_cookie(_cookie_name(request))
        return response

    def _signed_in(self, request: Request) -> Session:
        session = self._session(request)
        if session is None or request.headers.get(FORGERY_HEADER) != session.forgery:
            raise NotSignedIn
        return session

    # ------------------------------------------------------------------ what may be done

    async def _cancel(self, request: Request) -> Response:
        self._signed_in(request)
        wish = await _body(request, JobWish)
        await self.board.site(wish.site).cancel(wish.key, "cancelled on the dashboard", task=wish.task)
        return JSONResponse({})

    async def _requeue(self, request: Request) -> Response:
        self._signed_in(request)
        wish = await _body(request, JobWish)
        await self.board.site(wish.site).requeue(wish.key, "requeued on the dashboard", task=wish.task)
        return JSONResponse({})


class NotSignedIn(SlurmbusError):
    """Looking is all that may be done without signing in."""

    code = "not-signed-in"
    default_hint = "open the link that 'slurmbus dashboard --link' gives"


class BadBody(SlurmbusError):
    """What was sent can't be read."""

    code = "bad-body"


_STATUS = {NotSignedIn: 403, BadBody: 400}


async def _told(_request: Request, error: SlurmbusError) -> Response:
    return _problem(error.message, _STATUS.get(type(error), 503 if error.retryable else 409), error.hint)


def _problem(message: str, status: int, hint: str = "", headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"problem": message, "hint": hint}, status, headers)


def _cookie_name(connection: HTTPConnection) -> str:
    """Cookies are shared by all ports of a host: the name tells the servers there apart."""
    return f"{COOKIE}-{connection.url.port or 0}"


async def _body(request: Request, kind: type[B]) -> B:
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise BadBody("too long")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BadBody(str(error)) from error
