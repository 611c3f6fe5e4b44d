"""The site behind a resource, for sensors and checks that look after sites instead of running jobs."""

from __future__ import annotations

from typing import Any

from dagster_slurmbus.pipes import PipesSlurmClient
from dagster_slurmbus.resources import ComputeResource, SlurmResource
from dagster_slurmbus.values import wrong


def pipes_client_of(resources: Any, key: str, asker: str) -> PipesSlurmClient:
    """Give the client behind a resource.

    Args:
        resources: those of a sensor's or a check's context.
        key: the resource's.
        asker: who needs it, for the error.

    Raises:
        dagster.Failure: it is a resource of another kind.
    """
    resource = getattr(resources, key)
    if isinstance(resource, PipesSlurmClient):
        return resource
    if isinstance(resource, ComputeResource | SlurmResource):
        return resource.pipes_client()
    raise wrong(
        f"{asker}: the resource {key!r} is {type(resource).__name__}, and has no site: "
        "name a ComputeResource, a SlurmResource or a PipesSlurmClient"
    )
