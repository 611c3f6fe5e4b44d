"""The token by which programs that scrape metrics are let in."""

from __future__ import annotations

import hmac
from pathlib import Path


class Bearer:
    """Knows the token of a file.

    Args:
        path: read anew for each request, so that the token can be changed without a restart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def fits(self, authorization: str | None) -> bool:
        """Tell whether a request's ``Authorization`` header brings the token. Source: RFC 6750, 2.1."""
        scheme, _, told = (authorization or "").partition(" ")
        token = self._path.read_bytes().strip()
        return scheme.lower() == "bearer" and bool(token) and hmac.compare_digest(told.strip().encode(), token)
