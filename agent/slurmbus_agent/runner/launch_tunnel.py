"""The way to a page inside the job for people who can't reach its nodes."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slurmbus_agent.runner.launch_job import Launch


def tunnel(job: Launch, address: str, port: int) -> str | None:
    """Give the line that brings a page to the same port of one's own machine; None when the job has no login node."""
    login = os.environ.get("SLURM_SUBMIT_HOST")
    if not login or job.allocation.local:
        return None
    user = os.environ.get("USER") or str(os.getuid())
    return f"ssh -N -L {port}:{address}:{port} {user}@{login}"
