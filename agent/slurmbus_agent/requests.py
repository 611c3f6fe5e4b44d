"""The requests in the spool, decoded; the tasks of an array share theirs, and it may be large."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from slurmbus_agent.spool import Spool
from slurmbus_protocol import codec
from slurmbus_protocol.messages import Submit
from slurmbus_protocol.signing import KEY_HEADER

_REMEMBERED = 4


@dataclass(frozen=True)
class KeptRequest:
    """A request as it lies in the spool."""

    submit: Submit
    sha256: str
    signer: str
    """The public key that signed it."""


class Requests:
    """Reads requests, and remembers the last arrays'.

    Args:
        spool: where they lie.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._arrays: OrderedDict[str, KeptRequest] = OrderedDict()
        self._lock = Lock()

    def read(self, key: str, task: int) -> KeptRequest | None:
        """Give the request of a job, or None when the spool has none; works on the file system: call it in a thread.

        Raises:
            BadMessage: it can't be read.
            SpoolError: the spool can't.
        """
        with self._lock:  # a thousand tasks ask at once for the same
            known = self._arrays.get(key)
            if known is not None:
                return known
            stored = self._spool.job(key, task).read_request()
            if stored is None:
                return None
            submit = codec.decode_as(stored.data, Submit)
            signer = stored.headers.get(KEY_HEADER, "")
            kept = KeptRequest(submit, hashlib.sha256(stored.data).hexdigest(), signer)
            if submit.job.tasks:
                self._arrays[key] = kept
                if len(self._arrays) > _REMEMBERED:
                    self._arrays.popitem(last=False)
            return kept
