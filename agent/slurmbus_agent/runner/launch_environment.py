"""Brings the environment that some commands made to the process that asked for it: ``<runner> --environment <fd>``."""

from __future__ import annotations

import json
import os
import resource
from contextlib import suppress

from slurmbus_agent.runner.launch_lines import pieces

_LIMITS = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_STACK")


def main(argv: list[str]) -> int:
    """Write this process' environment and limits to a descriptor."""
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}
    with open(int(argv[2]), "w") as file:
        json.dump({"env": dict(os.environ), "limits": limits}, file)
    return 0


class Content:
    """The reading end of the pipe that ``main`` writes to, which holds less than an environment may have."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.data = b""
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Take what there is; False at the end, when nobody can write any more."""
        for data in pieces(self.descriptor):
            if not data:
                return False
            self.data += data
        return True


def take_over(content: bytes) -> None:
    """Make the environment and the limits that ``main`` wrote this process' own."""
    found = json.loads(content)
    os.environ.clear()
    os.environ.update(found["env"])
    for name, (soft, hard) in found["limits"].items():
        with suppress(ValueError, OSError):  # one may only lower it
            resource.setrlimit(getattr(resource, name), (soft, hard))
