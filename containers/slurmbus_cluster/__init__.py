"""A real Slurm cluster in containers, for tests and for the demo."""

from __future__ import annotations

from .cluster import Cluster
from .engine import engine_problem
from .errors import ClusterError, CommandFailed, ConditionTimeout, EngineUnavailable, HostFailed
from .host import Host, HostProcess, Result
from .image import ensure_image, image_tag

__all__ = [
    "Cluster",
    "ClusterError",
    "CommandFailed",
    "ConditionTimeout",
    "EngineUnavailable",
    "Host",
    "HostFailed",
    "HostProcess",
    "Result",
    "engine_problem",
    "ensure_image",
    "image_tag",
]
