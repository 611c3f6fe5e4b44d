"""Shows what assets log as short lines; Dagster's own events are in its UI."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


class ShortLines(logging.StreamHandler[TextIO]):
    """Writes the step and the message, and leaves Dagster's events out."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, unless it is an event."""
        meta = getattr(record, "dagster_meta", {})
        if meta.get("dagster_event") is None:
            self.stream.write(f"  {meta.get('step_key') or 'run'}: {meta.get('orig_message') or record.getMessage()}\n")
            self.stream.flush()
