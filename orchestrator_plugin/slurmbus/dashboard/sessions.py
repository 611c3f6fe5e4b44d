"""Who is signed in: a link that works once, a cookie for the browser, and a second secret against forgery."""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass

from slurmbus.dashboard.links import Links

LIFETIME = 12 * 3600.0
"""Seconds after which a browser has to sign in again."""
MAX_SESSIONS = 64


@dataclass(frozen=True, slots=True)
class Session:
    """One browser that has signed in."""

    cookie: str
    forgery: str
    """The page sends it back in a header, which another site's page can neither read nor set."""
    until: float


class Sessions:
    """The browsers that have signed in since the server was started; kept in memory only.

    Args:
        links: whose tokens let in.
    """

    def __init__(self, links: Links) -> None:
        self._links = links
        self._used: dict[str, tuple[float, str]] = {}
        """Until when each would have worked, and the attempt that used it."""
        self._sessions: dict[str, Session] = {}

    def sign_in(self, token: str, attempt: str = "") -> Session | None:
        """Begin a session; None when the token isn't one, is too old, or was used before by another attempt."""
        now = time.time()
        self._used = {used: (until, by) for used, (until, by) in self._used.items() if until > now}
        until = self._links.until(token)
        if until <= now:
            return None
        if token in self._used:
            _, by = self._used[token]
            if not attempt or not hmac.compare_digest(by.encode(), attempt.encode()):
                return None
        self._used[token] = (until, attempt)
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), time.monotonic() + LIFETIME)
        self._sessions[session.cookie] = session
        return session

    def find(self, cookie: str | None) -> Session | None:
        """Give the session of a cookie, or None."""
        session = self._sessions.get(cookie or "")
        if session is not None and session.until < time.monotonic():
            del self._sessions[session.cookie]
            return None
        return session

    def holds(self, session: Session) -> bool:
        """Tell whether a session goes on; who keeps a page open isn't sent away for the time alone."""
        return session.cookie in self._sessions

    def sign_out(self, session: Session) -> None:
        """End a session."""
        self._sessions.pop(session.cookie, None)
