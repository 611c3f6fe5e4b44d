"""What can go wrong with a test cluster.

ClusterError
├── EngineUnavailable    no container engine can be used, or it can't build the image
├── HostFailed           a host or one of its daemons didn't come up
├── CommandFailed        a command in a host ended with another code than 0
└── ConditionTimeout     something didn't happen before its deadline
"""

from __future__ import annotations

from collections.abc import Sequence


class ClusterError(Exception):
    """Something about the test cluster went wrong."""


class EngineUnavailable(ClusterError):
    """No container engine can be used, or it can't build the cluster's image."""


class HostFailed(ClusterError):
    """A host of the cluster, or one of its daemons, didn't come up; the message ends with its log."""


class CommandFailed(ClusterError):
    """A command in a host of the cluster ended with another code than 0."""

    def __init__(self, host: str, argv: Sequence[str], exit_code: int, stdout: str, stderr: str) -> None:
        self.host = host
        self.argv = list(argv)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr
        output = "\n".join(part.strip() for part in (stderr, stdout) if part.strip())
        super().__init__(f"{' '.join(argv)} ended with {exit_code} on {host}:\n{output}")


class ConditionTimeout(ClusterError):
    """Something that was waited for didn't happen before its deadline."""
