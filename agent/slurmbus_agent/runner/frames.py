"""The frames of the link as bytes, and the proofs in them.

A frame is four bytes of length (big-endian, of what follows), a JSON object on one line, a newline, and data.
"""

from __future__ import annotations

import hashlib
import hmac
import json

from slurmbus_agent.runner.protocol import MAX_DATA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PREFIX = 4
MAX_HEADER = 16 * 1024
MAX_FRAME = MAX_HEADER + MAX_DATA
_SHORTEST = len(b"{}\n")
AGENT = b"agent"
RUNNER = b"runner"


class BadFrame(ValueError):
    """The bytes are no frame of ours."""


def pack(header: dict[str, Any], data_length: int = 0) -> bytes:
    """Give everything of a frame but its data."""
    line = json.dumps(header, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_HEADER:
        raise BadFrame(f"a header of {len(line):,} bytes is too long")
    return (len(line) + data_length).to_bytes(PREFIX, "big") + line


def length(prefix: bytes, limit: int = MAX_FRAME) -> int:
    """Read a frame's length; BadFrame when it can't be right."""
    size = int.from_bytes(prefix, "big")
    if not _SHORTEST <= size <= limit:
        raise BadFrame(f"a frame of {size:,} bytes")
    return size


def header_of(line: bytes) -> dict[str, Any]:
    """Read a header; BadFrame when it isn't one."""
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"a header that isn't JSON: {error}") from error
    if not isinstance(header, dict):
        raise BadFrame("a header that isn't an object")
    return header


def proof(secret: bytes, role: bytes, server: str, challenge: str, hello: bytes) -> str:
    """Prove that one knows the secret, in this role, on this connection.

    ``server`` comes from the spool, not from the wire: someone who listens at an address of an earlier agent and
    passes everything on to the present one can't make the two proofs fit.
    """
    said = b"\n".join((b"slurmbus-link-1", role, server.encode(), challenge.encode(), hello))
    return hmac.new(secret, said, hashlib.sha256).hexdigest()


def same(one: str, other: object) -> bool:
    """Compare two proofs without telling by the time where they differ."""
    return isinstance(other, str) and hmac.compare_digest(one.encode(), other.encode())
