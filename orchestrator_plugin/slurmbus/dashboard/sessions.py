"""Who is signed in: a secret that the command prints, a cookie for the browser, and a second secret against forgery."""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass

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
    """The browsers that have signed in since the server was started; kept in memory only."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        """Whoever has it may sign in."""
        self._sessions: dict[str, Session] = {}

    def sign_in(self, token: str) -> Session | None:
        """Begin a session; None when the token is another one."""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
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

    def sign_out(self, session: Session) -> None:
        """End a session."""
        self._sessions.pop(session.cookie, None)
