"""Spark inside the job."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dagster_slurmbus.launchers.bash import BashLauncher
from slurmbus_protocol.plans import AnyPlan, SparkPlan

_MIB_PER_GB = 1_000_000_000 / 1024**2


class SparkLauncher(BashLauncher):
    """Runs the payload with a standalone Spark cluster over all nodes of its job.

    ``SparkSession.builder.getOrCreate()`` attaches to it. The cluster is ready when a worker of every node has
    registered, and gone right after the payload's end. It needs Java, and pyspark in the Python that ``python`` names.
    """

    spark_home: str | None = Field(
        default=None, description="An installed Spark; SPARK_HOME of the job, or what comes with pyspark, when unset."
    )
    cores_per_node: int | None = Field(
        default=None,
        ge=1,
        description="Cores that Spark uses on each node; those that Slurm gave when nothing is said.",
    )
    executor_memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="The heap of the executor on each node; 60 % of the job's memory there, less what master, driver "
        "and workers take, when unset.",
    )
    driver_memory_gb: float = Field(default=1.0, gt=0, description="The heap of the payload's own JVM.")
    conf: dict[str, str] = Field(
        default_factory=dict, description="Further settings of Spark, e.g. {'spark.sql.shuffle.partitions': '64'}."
    )
    interface: str | None = Field(
        default=None, description="The network between the nodes, e.g. ib0; that of the nodes' names when unset."
    )
    temp_dir: str | None = Field(
        default=None, description="A folder on every node's own disk for what Spark spills; TMPDIR or /tmp when unset."
    )
    start_timeout: float = Field(
        default=120.0, gt=0, description="Seconds within which all workers must have registered, or the job fails."
    )

    def plan(self, payload: str, args: Sequence[str] = ()) -> AnyPlan:
        """Start the payload as :class:`BashLauncher` does, with Spark beside it."""
        return SparkPlan(
            argv=self.words(payload, args),
            preamble=self.preamble,
            python=self.python,
            spark_home=self.spark_home,
            cores_per_node=self.cores_per_node,
            executor_memory_mib=None if self.executor_memory_gb is None else _mib(self.executor_memory_gb),
            driver_memory_mib=_mib(self.driver_memory_gb),
            conf=self.conf,
            interface=self.interface,
            temp_dir=self.temp_dir,
            start_timeout=self.start_timeout,
        )


def _mib(gigabytes: float) -> int:
    return int(gigabytes * _MIB_PER_GB)
