"""What a program says of itself while it serves: lines for people, or one JSON object a line for what collects logs."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from slurmbus_protocol.errors import InvalidSetting

VARIABLE = "SLURMBUS_LOG_FORMAT"
TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)
FILE_BYTES = 4 * 1024 * 1024

_FOR_PEOPLE = "%(asctime)s %(levelname)-7s %(message)s"
_FIELDS = ("job", "task", "trace_id")
"""What a line may say of its job: ``extra={"job": key}``, or :func:`about` for all lines of an asyncio task."""

_about: ContextVar[Mapping[str, object] | None] = ContextVar("slurmbus_log_fields", default=None)


def about(**fields: object) -> None:
    """Let every further line of this asyncio task, and of what it starts, carry these fields; None is left out.

    Args:
        fields: ``job``, ``task``, ``trace_id``.
    """
    _about.set({name: value for name, value in fields.items() if value is not None})


class JsonLines(logging.Formatter):
    """Makes one JSON object of each record: time, level, logger, message, then what is known of site, agent and job.

    Args:
        always: what every line says: site, agent.
    """

    def __init__(self, **always: str) -> None:
        super().__init__()
        self.always = always

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.always,
            **(_about.get() or {}),
            **{name: getattr(record, name) for name in _FIELDS if hasattr(record, name)},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def chosen(option: str | None, setting: str = TEXT) -> str:
    """Give the format: the command line's, else the environment's, else the configuration's.

    Raises:
        InvalidSetting: there is no such format.
    """
    name = option or os.environ.get(VARIABLE) or setting
    if name not in FORMATS:
        raise InvalidSetting(f"the log format {name!r} isn't known", hint=f"use {' or '.join(FORMATS)}")
    return name


def set_up(kind: str, level: int, *, file: Path | None = None, **always: str) -> None:
    """Let this process write its log, in one of the FORMATS.

    Args:
        kind: the format.
        level: the least that is written.
        file: where to, instead of stderr; it is put aside when it has FILE_BYTES, and one older one is kept.
        always: what every JSON line says: site, agent.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=1)
    handler.setFormatter(JsonLines(**always) if kind == JSON else logging.Formatter(_FOR_PEOPLE))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.ERROR)
