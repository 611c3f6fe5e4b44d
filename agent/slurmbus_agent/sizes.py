"""How large the parts of a request may be that go into its job's record, which has to fit into one message. Pure."""

from __future__ import annotations

import msgspec

from slurmbus_protocol.errors import TooLarge
from slurmbus_protocol.messages import Control, Submit

MAX_SUBMITTER = 256
"""Bytes of ``user@host``: host names have 253 at most."""
MAX_REASON = 4096
"""Bytes of a control's reason."""
MAX_REQUEUES = 20
"""Requeues that a record keeps; none is ever dropped, or it could be carried out again."""
MAX_LABELS = 64 * 1024
"""Bytes of all labels, encoded; Dagster's are seven of 200 characters at most."""
MAX_OPTIONS = 64 * 1024
"""Bytes of all options, encoded."""
MAX_OUTPUTS = 256 * 1024
"""Bytes of the names of what comes back, with their hashes: a thousand long names."""
MAX_PROBLEMS = 4096
"""Characters about outputs that can't come back."""
_OF_A_FILE = 128


def check_sizes(message: Submit | Control) -> None:
    """Raise TooLarge, naming the field, when a part is larger than a record has room for."""
    parts: list[tuple[str, object, int]] = [("submitter", message.submitter, MAX_SUBMITTER)]
    if not isinstance(message, Submit):
        parts.append(("reason", message.reason, MAX_REASON))
    else:
        parts += [("labels", message.job.labels, MAX_LABELS), ("options", message.job.options, MAX_OPTIONS)]
    for field, value, most in parts:
        size = len(msgspec.msgpack.encode(value))
        if size > most:
            raise TooLarge(f"{field} has {size:,} bytes, and {most:,} fit into a record")


def fitting(names: list[str]) -> list[str]:
    """Give the first of the files that come back, as many as a record has room for."""
    room = MAX_OUTPUTS
    for number, name in enumerate(names):
        room -= len(name.encode(errors="surrogateescape")) + _OF_A_FILE
        if room < 0:
            return names[:number]
    return names
