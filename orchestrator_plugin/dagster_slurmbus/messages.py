"""Dagster Pipes over a relay: the context goes with the request, messages come back as bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import dagster as dg
from dagster_pipes import PipesContextData, PipesMessage, PipesParams

from dagster_slurmbus._compat import is_log_level
from dagster_slurmbus.shown import Shown
from dagster_slurmbus.values import wrong
from slurmbus_protocol.subjects import Stream

_OPENED = "opened"
_LOGS = frozenset({"log", "log_external_stream"})
_HELD = frozenset({"report_asset_materialization", "report_asset_check", "report_custom_message"})
_CLOSED = "closed"
_EXCERPT = 200
MAX_WARNINGS = 20
"""Bad messages of one job that are shown; ``context.log`` takes 5 to 13 ms a line, and the rest is only counted."""


class Lines:
    """Puts lines together from byte ranges that are cut anywhere."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give each line that ``data`` completes, without its end."""
        *complete, rest = data.split(b"\n")
        for line in complete:
            self._pieces.append(line)
            whole = b"".join(self._pieces)
            self._pieces.clear()
            yield whole
        if rest:
            self._pieces.append(rest)

    def take_rest(self) -> bytes:
        """Give what came after the last line end, and forget it."""
        rest = b"".join(self._pieces)
        self._pieces.clear()
        return rest


class RequestContextInjector(dg.PipesContextInjector):
    """Keeps the Pipes context as the bytes that travel in the request; the runner puts them into a file."""

    context: PipesContextData
    data: bytes
    """The context as JSON."""

    @contextmanager
    def inject_context(self, context_data: PipesContextData) -> Iterator[PipesParams]:
        """Take the context; the parameters are the runner's matter, since it alone knows the file's path."""
        self.context = context_data
        try:
            self.data = json.dumps(context_data).encode()
        except (TypeError, ValueError) as error:
            raise wrong(f"extras must be JSON (text, numbers, true/false, null, lists, mappings): {error}") from error
        yield {}

    def no_messages_debug_text(self) -> str:
        """Say how the context travels."""
        return "The context travels inside the request; the runner gives its path to the payload."


class RelayedMessageReader(dg.PipesMessageReader):
    """Reads the Pipes messages of a job from byte ranges that its owner feeds in.

    Logs pass at once. Results are held until the job has ended, and only those of the last start count, since a start
    that was superseded (a requeue) has no results. A message that can't be used becomes a warning, never an error.

    Args:
        warn: where warnings go, e.g. ``context.log.warning``.
        times_logged: tells how often this run's log has a line; asked when an attempt was killed while it logged.
    """

    def __init__(self, warn: Callable[[str], None], times_logged: Callable[[str], int] = lambda _: 0) -> None:
        self.payload_exception: str | None = None
        """What the payload's last start closed its session with, as Python prints it."""
        self.shown = Shown(None)
        """What this run's log shows already of a job that is read again; set before anything is fed."""
        self._handler: dg.PipesMessageHandler | None = None
        self._warn = warn
        self._times_logged = times_logged
        self._read = 0
        """Bytes of this start's messages, up to the end of the line that is handled."""
        self._seen = False
        """This run's log has what comes of this line from an earlier attempt."""
        self._texts: Counter[str] = Counter()
        self._bad = 0
        self._start = 0
        self._lines = Lines()
        self._held: list[PipesMessage] = []
        self._closed: PipesMessage | None = None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        """Hand messages to this handler while the session is open."""
        self._handler = handler
        try:
            yield {}
        finally:
            self._handler = None

    @property
    def expected_writer_count(self) -> int:
        """One session is opened and closed, whatever the payload does; see ``_close``."""
        return 1

    def no_messages_debug_text(self) -> str:
        """Say how messages travel."""
        return "Messages are relayed from a file on the cluster that the runner follows."

    def feed(self, start: int, data: bytes) -> None:
        """Take the next bytes of a start's messages."""
        if start != self._start:
            self._begin(start)
        for line in self._lines.feed(data):
            self._next(line, len(line) + 1)

    def finish(self, last_start: int) -> None:
        """Hand over the results of the job's last start; nothing may be fed afterwards."""
        rest = self._lines.take_rest()
        if rest:
            self._next(rest, len(rest))
        self._seen = False
        if last_start != self._start:
            self._begin(last_start)
        for message in self._held:
            self._deliver(message)
        if self._closed is not None:
            self._deliver(self._closed)
        if self._bad > MAX_WARNINGS:
            self._warn(f"[pipes] {self._bad - MAX_WARNINGS} more messages couldn't be used.")

    def another_job(self) -> None:
        """Begin with another job in the place of the one that failed, whose results don't count."""
        self._held.clear()
        self._begin(0)

    def _begin(self, start: int) -> None:
        dropped = len(self._held)
        if dropped:
            self._warn(
                f"[pipes] start {self._start} was superseded by start {start}: its {dropped} results don't count."
            )
        self._start = start
        self._read = 0
        self._texts.clear()
        self._lines.take_rest()
        self._held.clear()
        self._closed = None
        self.payload_exception = None

    def _next(self, line: bytes, length: int) -> None:
        self._read += length
        self._seen = self._read <= self.shown.until(self._start, Stream.MESSAGES)
        self._take(line)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            self._complain(f"isn't UTF-8 ({error.reason} at byte {error.start}); the wrong bytes were replaced", line)
            text = line.decode(errors="replace")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._complain(f"isn't JSON ({error})", line)
            return
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            self._complain("is no Pipes message", line)
            return
        self._sort(cast("PipesMessage", message), line)

    def _sort(self, message: PipesMessage, line: bytes) -> None:
        method = message["method"]
        if method == _CLOSED:
            self._close(message)
        elif method in _HELD:
            self._held.append(message)
        elif method == _OPENED:
            self._deliver(message)
        elif method in _LOGS:
            self._log(_with_known_level(message) if method == "log" else message)
        else:
            self._complain(f"has the unknown method {method[:50]!r}", line)

    def _log(self, message: PipesMessage) -> None:
        """Pass a line on, unless this run's log has it from an earlier attempt."""
        start, read = self._start, self._read
        params = message.get("params")
        text = str(params.get("message")) if isinstance(params, Mapping) else ""
        doubt = self.shown.doubt(start, Stream.MESSAGES)
        if doubt is not None:
            self._texts[text] += 1
            if doubt.until == read and self._times_logged(text) >= self._texts[text]:
                self.shown.end(start, Stream.MESSAGES, read)
                return
        if self._seen:
            return
        self.shown.begin(start, Stream.MESSAGES, read)
        self._deliver(message)
        self.shown.end(start, Stream.MESSAGES, read)

    def _close(self, message: PipesMessage) -> None:
        """Keep one ``closed``: a payload of several processes may send several, Dagster expects one, the last."""
        exception = (message.get("params") or {}).get("exception")
        if exception is not None or self.payload_exception is None:
            self._closed = message
        if isinstance(exception, Mapping):
            self.payload_exception = _traceback(exception)

    def _deliver(self, message: PipesMessage) -> None:
        handler = self._handler
        if handler is None:
            raise RuntimeError("messages can only be handed over while the Pipes session is open")
        try:
            handler.handle_message(message)
        except Exception as error:  # noqa: BLE001 - whatever Dagster says of one message must not end the step
            reason = str(error).strip() or type(error).__name__
            self._complain(f"was refused by Dagster ({reason[:_EXCERPT]})", json.dumps(message).encode())

    def _complain(self, what: str, line: bytes) -> None:
        self._bad += 1
        if self._bad > MAX_WARNINGS or self._seen:
            return
        excerpt = line[:_EXCERPT].decode(errors="replace") + ("…" if len(line) > _EXCERPT else "")
        self._warn(f"[pipes] a message of {len(line):,} bytes {what}: {excerpt}")
        self.shown.end(self._start, Stream.MESSAGES, max(self._read, self.shown.until(self._start, Stream.MESSAGES)))


def _with_known_level(message: PipesMessage) -> PipesMessage:
    """Give a log message a level that Dagster takes; what isn't one becomes "info", with its own name in front."""
    params = message.get("params")
    if not isinstance(params, Mapping) or "level" not in params or is_log_level(params["level"]):
        return message
    changed = {**params, "level": "info", "message": f"[{params['level']}] {params.get('message')}"}
    return cast("PipesMessage", {**message, "params": changed})


def _traceback(exception: Mapping[str, Any]) -> str:
    stack = exception.get("stack") or []
    return "".join(map(str, stack)) + str(exception.get("message") or exception.get("name") or "")
