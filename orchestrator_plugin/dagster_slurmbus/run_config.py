"""Options for one run, in the launchpad."""

from __future__ import annotations

from dagster_slurmbus.queue_config import SlurmQueueConfig


class SlurmRunConfig(SlurmQueueConfig):
    """What this run of a step asks Slurm for, over the resource's defaults; everything is optional.

    Use it as the step's config and hand it to ``run``::

        @dg.asset(required_resource_keys={"compute"})
        def train_model(context: dg.AssetExecutionContext, config: SlurmRunConfig):
            ...compute.run(context=context, payload_path=..., options=config)

    and the launchpad offers ``partition``, ``time_limit``, ``mem`` and the rest for that step.
    """
