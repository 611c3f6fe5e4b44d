"""The session with the helper on the login node: one process of ``ssh``, and requests that are answered in turn."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import queue
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from slurmbus.bootstrap.frames import BYE, LONGEST_TYPED, Scanner, new_nonce, program, request, starter
from slurmbus.bootstrap.login import COMMAND
from slurmbus.bootstrap.ssh import Master
from slurmbus.errors import LoginFailed, SiteUnfit

START_PATIENCE = 60.0
"""Seconds until the helper runs: slow home file systems, long login scripts."""
TYPE_AGAIN = 5.0
"""Seconds after which a command that was typed into a shell and brought no answer is typed again: a program on the way
may have thrown away what was typed ahead."""
CALL_PATIENCE = 120.0
END_PATIENCE = 20.0
PIECE = 48 * 1024
_WANTS_TERMINAL = re.compile(r"\b(tty|pty|terminal)\b", re.IGNORECASE)
NO_ROOM = {errno.ENOSPC: "is full", errno.EDQUOT: "has no room left in your quota"}

Told = Callable[[str], None]


class RemoteFileError(SiteUnfit):
    """Something couldn't be done with a file on the site."""

    number: int = 0


class Done(NamedTuple):
    """What came of a program on the site."""

    code: int
    out: str
    err: str
    late: bool
    """It took too long and was killed."""

    @property
    def words(self) -> str:
        """The last lines of what it said."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return " / ".join(lines[-3:]) or f"exit code {self.code}"


class Remote:
    """The helper on the login node; a context manager. When it is left, whatever is unfinished there is removed.

    Args:
        master: the connection.
        python: on the site, tried before those that are found there.
    """

    def __init__(self, master: Master, python: str | None = None) -> None:
        self._master = master
        self._python = python
        self._frames: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._number = 0

    def __enter__(self) -> Self:
        """Start the helper.

        Raises:
            LoginFailed: the session doesn't come up.
            SiteUnfit: there is no Python at all.
        """
        try:
            self._open(terminal=self._master.login.force_tty)
        except LoginFailed:
            if self._master.login.force_tty or not _WANTS_TERMINAL.search(self._said()):
                raise
            self._open(terminal=True)
        return self

    def _open(self, *, terminal: bool) -> None:
        nonce = new_nonce()
        self._scanner = Scanner(nonce)
        self._frames = queue.Queue()
        start, after = starter(nonce, self._python), self._master.login.post_login_command
        typed: list[str] = []
        command: str | None = start
        if after and COMMAND in after:
            command = after.replace(COMMAND, shlex.quote(start))
        elif after:
            command, typed = None, [after, start]
        self._process = self._master.session(command, terminal=terminal)
        self._errors: list[bytes] = []
        self._threads = [
            threading.Thread(target=self._read_frames, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        try:
            self._begin(nonce, typed)
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the session."""
        self.close()

    def close(self) -> None:
        """Let the helper tidy up, and end."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(BYE)  # a terminal passes no end of the input on
                self._process.stdin.close()
        try:
            self._process.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------------ requests

    def call(self, op: str, *, patience: float = CALL_PATIENCE, told: Told | None = None, **arguments: Any) -> Any:
        """Let the helper do something, and give its result.

        Args:
            op: the operation, a function of ``remote/``.
            patience: seconds without any frame from there.
            told: called with each line that it reports meanwhile.
            arguments: of the operation.

        Raises:
            RemoteFileError: a file operation failed there.
            SiteUnfit: it failed in another way.
            LoginFailed: the connection broke.
        """
        self._number += 1
        self._send(request(self._number, op, arguments))
        while True:
            frame = self._next(patience, f"'{op}' on the login node")
            if "told" in frame:
                if told is not None:
                    told(str(frame["told"]))
                continue
            if frame.get("id") != self._number:
                continue
            if "error" in frame:
                raise _error(op, frame)
            return frame["result"]

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        data: bytes = b"",
        timeout: float = 60.0,
        told: Told | None = None,
    ) -> Done:
        """Run a program there to its end."""
        coded = base64.b64encode(data).decode()
        found = self.call(
            "run",
            patience=timeout + 30,
            told=told,
            argv=list(argv),
            env=dict(env or {}),
            data=coded,
            timeout=timeout,
            tell=told is not None,
        )
        return Done(**found)

    def read(self, path: str) -> bytes | None:
        """Give the end of a file, or None when there is none."""
        found = self.call("read", path=path)
        return None if found is None else base64.b64decode(found)

    def write(self, path: str, data: bytes, mode: int = 0o600) -> None:
        """Write a small file, all or nothing."""
        self.call("write", path=path, data=base64.b64encode(data).decode(), mode=mode)

    def send(self, source: Path, path: str, moved: Callable[[int], None]) -> None:
        """Send a file, and see that it arrived as it was.

        Raises:
            SiteUnfit: it didn't.
        """
        check, offset = hashlib.sha256(), 0
        with source.open("rb") as file:
            while piece := file.read(PIECE):
                check.update(piece)
                self.call("append", path=path, data=base64.b64encode(piece).decode(), offset=offset)
                offset += len(piece)
                moved(len(piece))
        if self.call("digest", path=path) != check.hexdigest():
            raise SiteUnfit(f"{source.name} didn't arrive as it was sent", hint="run it again")

    # ------------------------------------------------------------------ inside

    def _begin(self, nonce: str, typed: list[str]) -> None:
        deadline = time.monotonic() + START_PATIENCE
        for line in typed:
            self._type(line)
        while not (frame := self._first(deadline, typed)).get("ready"):
            word = frame.get("word")
            if word == "nopython":
                raise SiteUnfit(
                    f"there is no Python 3 on {self._master.login.host}, not even an old one",
                    hint="name one that is somewhere else there with --agent-python /path/to/python3",
                )
            if word == "feed":
                source = files("slurmbus.bootstrap.remote").joinpath("helper.py").read_text()
                self._send(program(source, nonce))

    def _first(self, deadline: float, typed: list[str]) -> dict[str, Any]:
        while True:
            left = deadline - time.monotonic()
            try:
                frame = self._frames.get(timeout=max(0.0, min(left, TYPE_AGAIN)))
            except queue.Empty:
                if left <= 0:
                    raise self._broken(f"no answer within {START_PATIENCE:.0f} s") from None
                if typed:
                    self._type(typed[-1])
                continue
            if frame is None:
                raise self._broken("the session ended")
            return frame

    def _type(self, line: str) -> None:
        if len(line) > LONGEST_TYPED:
            raise LoginFailed(f"post_login_command is longer than {LONGEST_TYPED} bytes")
        self._send(line.encode() + b"\n")

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._broken("the session ended") from error

    def _next(self, patience: float, what: str) -> dict[str, Any]:
        try:
            frame = self._frames.get(timeout=patience)
        except queue.Empty:
            raise self._broken(f"{what}: no answer within {patience:.0f} s") from None
        if frame is None:
            raise self._broken(f"{what}: the connection broke")
        return frame

    def _broken(self, words: str) -> LoginFailed:
        said = self._said()
        tail = " / ".join(line.strip() for line in said.splitlines()[-5:] if line.strip())
        hint = f"the login node said: {tail}" if tail else "run it again; 'ssh' by hand may say more"
        return LoginFailed(f"{self._master.login.host}: {words}", hint=hint)

    def _said(self) -> str:
        """Give what came that was no frame."""
        return b"".join(self._errors).decode(errors="replace").strip() or self._scanner.words

    def _read_frames(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None  # noqa: S101
        with pipe:
            while data := pipe.read1(65536):  # type: ignore[attr-defined]  # a buffered reader
                for text in self._scanner.feed(data):
                    self._frames.put(_frame(text))
        self._frames.put(None)

    def _read_errors(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None  # noqa: S101
        with pipe:
            for line in pipe:
                self._errors = [*self._errors[-40:], line]


def _frame(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {"word": text}
    frame: dict[str, Any] = json.loads(text)
    return frame


def _error(op: str, frame: Mapping[str, Any]) -> SiteUnfit:
    number, path = int(frame["errno"] or 0), str(frame["path"])
    if not number:
        return SiteUnfit(f"'{op}' failed on the login node: {frame['error']}")
    where = f"{path}: " if path else ""
    if number in NO_ROOM:
        return RemoteNoRoom(f"{where}the file system {NO_ROOM[number]}")
    error = RemoteFileError(f"{where}{frame['error']}")
    error.number = number
    return error


class RemoteNoRoom(RemoteFileError):
    """A file system on the site is full, or a quota is."""
