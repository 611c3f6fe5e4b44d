"""Ray: a cluster over the job's nodes with the payload attached, or the payload attached to a cluster that is there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slurmbus_agent.runner.launch_job import Launch


def launch(job: Launch) -> int:
    """Run the payload with Ray, and give its exit code or minus its signal."""
    return job.run(env={"RAY_ADDRESS": str(job.options["ray_address"])})
