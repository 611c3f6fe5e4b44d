"""The job's output on its way into Dagster's compute logs."""

from __future__ import annotations

import codecs
import sys

from slurmbus_protocol.subjects import Stream


class Forwarder:
    """Writes a job's stdout and stderr to this process's own, which Dagster captures. Bytes stay as they are."""

    def __init__(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder("replace") for stream in (Stream.STDOUT, Stream.STDERR)}

    def write(self, stream: Stream, data: bytes) -> None:
        """Write some bytes and flush, so that they are seen at once."""
        target = sys.stdout if stream is Stream.STDOUT else sys.stderr
        raw = getattr(target, "buffer", None)
        if raw is None:  # somebody replaced the stream by one of text
            target.write(self._decoders[stream].decode(data))
        else:
            target.flush()
            raw.write(data)
        target.flush()
