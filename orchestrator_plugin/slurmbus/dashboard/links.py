"""The links that sign a browser in: each works once, for a while, at the server that it was made for.

A link is made by the server, or later by ``slurmbus dashboard --link``, which has the server's key from a file of the
home. Nothing that works twice is ever printed or put into a command line, which every user of the machine can read.
"""

from __future__ import annotations

import hmac
import html
import secrets
import time
from pathlib import Path

import msgspec

from slurmbus.home import Home
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.private_files import write_private

PRINTED = 3600.0
"""Seconds for which a link works that a person has to open."""
OPENED = 120.0
"""The same, of a link that is opened by the command: a browser that starts cold takes its time."""


class Links(msgspec.Struct, frozen=True):
    """Makes links; who has this can sign in, so it lies in files that only the user can read."""

    page: str
    """The page's address."""
    key: str

    @classmethod
    def of_page(cls, page: str) -> Links:
        """Begin with a new key, so that no link of an earlier server works."""
        return cls(page, secrets.token_urlsafe(32))

    def link(self, lifetime: float = PRINTED) -> str:
        """Give the page's address with a new token, behind the ``#`` that browsers keep to themselves."""
        said = f"{int(time.time() + lifetime)}.{secrets.token_urlsafe(16)}"
        return f"{self.page}#token={said}.{self._proof(said)}"

    def until(self, token: str) -> float:
        """Give until when a token works (seconds since the epoch); 0 when it isn't one of this key's."""
        said, _, proof = token.rpartition(".")
        if not hmac.compare_digest(proof.encode(), self._proof(said).encode()):
            return 0.0
        return float(said.partition(".")[0])

    def _proof(self, said: str) -> str:
        return hmac.digest(self.key.encode(), said.encode(), "sha256").hex()

    # ------------------------------------------------------------------ files

    @classmethod
    def of(cls, home: Home) -> Links:
        """Give those of the server that was started last; InvalidSetting when none runs."""
        try:
            return msgspec.json.decode(_file(home).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidSetting(
                f"no dashboard of {home.path} runs", hint="start it with 'slurmbus dashboard'"
            ) from error

    def save(self, home: Home) -> None:
        """Let :meth:`of` find it."""
        home.make_folders()
        write_private(_file(home), msgspec.json.encode(self))

    def forget(self, home: Home) -> None:
        """Remove what was saved, unless a later server has saved its own."""
        if _file(home).exists() and Links.of(home) == self:
            _file(home).unlink(missing_ok=True)
        opening_file(home).unlink(missing_ok=True)

    def opening(self, home: Home) -> Path:
        """Write a page that leads a browser to a link, and give its path: the link itself would stand in ``ps``."""
        refresh = f'<meta http-equiv="refresh" content="0; url={html.escape(self.link(OPENED))}">'
        text = f'<!doctype html><meta charset="utf-8"><title>Slurmbus</title>{refresh}\n'
        home.make_folders()
        write_private(opening_file(home), text.encode())
        return opening_file(home)


def _file(home: Home) -> Path:
    return home.path / "dashboard.json"


def opening_file(home: Home) -> Path:
    """Give the path of the page that leads a browser to a link."""
    return home.path / "dashboard.html"
