"""Other sites that the same assets can run on, and which one a run chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field, field_validator

from dagster_slurmbus._compat import Context, run_tags
from dagster_slurmbus.again import MoreMemory, MoreTime
from dagster_slurmbus.environments import EnvironmentConfig, as_config
from dagster_slurmbus.launcher_config import LauncherConfig, as_launcher_config
from dagster_slurmbus.queue_config import SlurmQueueConfig
from dagster_slurmbus.values import absolute, known_now, wrong
from slurmbus_protocol.errors import InvalidName
from slurmbus_protocol.subjects import check_token

SITE_TAG = "slurmbus/site"
"""A run with this tag runs its jobs on the site that the tag names: one line in the launchpad."""

ENV_OF_A_SITE = (
    "Environment variables of every job there, e.g. where the data lie: DATA_DIR. A call's own go over them."
)
ENVIRONMENT_OF_A_SITE = "What payloads run in there, instead of ComputeResource.environment."
LAUNCHER_OF_A_SITE = "How payloads are started there, instead of ComputeResource.default_launcher."
AGAIN_ON_A_SITE = "There instead of ComputeResource's: nodes and queues differ in what they have."


class SlurmSite(dg.Config):
    """One more site for ``ComputeResource.other_sites``, reached over the same bus as the first one."""

    site: str = Field(description="The site's name, as its agent was started with: jureca-alice.")
    queue: SlurmQueueConfig = Field(
        default_factory=SlurmQueueConfig, description="What every job there asks Slurm for: its own partition, account…"
    )
    remote_base: str | None = Field(
        default=None,
        description="An absolute folder there under which working directories are made; else the agent's spool.",
    )
    env: dict[str, str] = Field(default_factory=dict, description=ENV_OF_A_SITE)
    secret_env: list[str] | None = Field(
        default=None, description="Names of variables of this process for every job there; else the first site's."
    )
    environment: EnvironmentConfig | None = Field(default=None, description=ENVIRONMENT_OF_A_SITE)
    default_launcher: LauncherConfig | None = Field(default=None, description=LAUNCHER_OF_A_SITE)
    on_out_of_memory: MoreMemory | None = Field(default=None, description=AGAIN_ON_A_SITE)
    on_timeout: MoreTime | None = Field(default=None, description=AGAIN_ON_A_SITE)

    @field_validator("site", "remote_base", "env", mode="before")
    @classmethod
    def _is_known_now(cls, value: Any) -> Any:
        return known_now(value)

    @field_validator("environment", mode="before")
    @classmethod
    def _environment_is_configuration(cls, value: Any) -> Any:
        return as_config(known_now(value))

    @field_validator("default_launcher", mode="before")
    @classmethod
    def _launcher_is_configuration(cls, value: Any) -> Any:
        return as_launcher_config(known_now(value))

    @field_validator("site")
    @classmethod
    def _site_is_a_token(cls, value: str) -> str:
        try:
            check_token(value, "site")
        except InvalidName as error:
            raise ValueError(str(error)) from error
        return value


def chosen_site(context: Context | None, site: str | None, first: str, others: Sequence[SlurmSite]) -> SlurmSite | None:
    """Give the other site that this run chooses; None when it is the first one.

    Args:
        context: of the executing step: its run's tag ``slurmbus/site`` goes over the resource's setting.
        site: the resource's setting.
        first: the site of ``ComputeResource.slurm``.
        others: the further ones.

    Raises:
        dagster.Failure: there is no such site; the message names those that there are.
    """
    tag = run_tags(context).get(SITE_TAG) if context is not None else None
    name = tag or site or first
    if name == first:
        return None
    for other in others:
        if other.site == name:
            absolute(other.remote_base, "other_sites.remote_base")
            return other
    known = ", ".join(repr(known) for known in (first, *(other.site for other in others)))
    whose = f"the run's tag {SITE_TAG}" if tag else "ComputeResource.site"
    raise wrong(f"{whose} names the site {name!r}, which this resource doesn't have; it has {known}")
