"""Where a job's options come from, and whose word counts.

Later ones win: the resource's queue, the asset's metadata, the call (its ``resource_requirements``, then its
``extra_slurm_opts``, then its ``options``), the run config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dagster_slurmbus._compat import Context, assets_metadata
from dagster_slurmbus.queue_config import Options, chosen_by, merge_chosen
from dagster_slurmbus.run_config import SlurmRunConfig
from dagster_slurmbus.values import resolved, wrong
from slurmbus import job_options
from slurmbus.job_options import Chosen
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import JobOptions

METADATA_KEY = "slurmbus/options"
"""The key of an asset's metadata under which its options stand."""

_REQUIREMENTS = {
    "cpus": "cpus",
    "gpus": "gpus_per_node",
    "memory_gb": "mem",
    "nodes": "nodes",
    "tasks": "ntasks",
    "time_limit": "time_limit",
}
"""Keys of ``resource_requirements`` and the options that they mean."""
_FRAMEWORK = "framework"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What one call of ``run`` says about options."""

    options: Options | None = None
    extra_slurm_opts: Mapping[str, Any] | None = None
    resource_requirements: Mapping[str, Any] | None = None
    run_config: SlurmRunConfig | None = None

    def over(self, queue: Options | None, context: Context) -> JobOptions:
        """Put everything together for the job of this step.

        Raises:
            dagster.Failure: a layer has an unknown key or a value that can't be used; the message says which layer.
        """
        call, run_config = self.options, self.run_config
        if run_config is None and isinstance(call, SlurmRunConfig):
            call, run_config = None, call
        return merge_chosen(
            chosen_by(queue, "the resource's queue"),
            of_assets(context),
            _required(self.resource_requirements),
            _extra_slurm_opts(self.extra_slurm_opts),
            chosen_by(call),
            chosen_by(run_config, "the run config"),
        )

    @property
    def framework(self) -> str | None:
        """The framework that ``resource_requirements`` names."""
        named = (self.resource_requirements or {}).get(_FRAMEWORK)
        if named is not None and not isinstance(named, str):
            raise wrong(f"resource_requirements: framework is {named!r}: write its name, e.g. 'ray'")
        return named


def of_assets(context: Context) -> Chosen:
    """Give what the metadata of the step's assets says; those that run together must agree."""
    together: Chosen = {}
    said_by: dict[str, str] = {}
    for asset, metadata in assets_metadata(context).items():
        given = metadata.get(METADATA_KEY)
        if given is None:
            continue
        where = f"metadata {METADATA_KEY!r} of asset {asset}"
        given = getattr(given, "value", given)  # dg.MetadataValue.json({…}) is understood, too
        if not isinstance(given, Mapping):
            raise wrong(f"{where} is {given!r}: write a mapping of options to values")
        for field, value in chosen_by(given, where).items():
            if together.get(field, value) != value:
                raise wrong(
                    f"assets {said_by[field]} and {asset} run as one job, and their metadata {METADATA_KEY!r} "
                    f"disagrees on {field}: {together[field]!r}, {value!r}"
                )
            together[field], said_by[field] = value, asset
    return together


def _extra_slurm_opts(given: Mapping[str, Any] | None) -> Chosen:
    if not given:
        return {}
    where = "extra_slurm_opts"
    try:
        return job_options.read_loosely(
            {key: resolved(value, f"{where}: {key}") for key, value in given.items()}, where
        )
    except InvalidSetting as error:
        raise wrong(str(error)) from error


def _required(given: Mapping[str, Any] | None) -> Chosen:
    """Read ``{"framework": "ray", "cpus": 32, "gpus": 1, "memory_gb": 120}``: of each node, and of one task there."""
    where = "resource_requirements"
    wanted: dict[str, Any] = {}
    for key, value in (given or {}).items():
        if key == _FRAMEWORK or value is None:
            continue
        if key not in _REQUIREMENTS:
            known = (_FRAMEWORK, *_REQUIREMENTS)
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise wrong(f"{where} has the unknown key {key!r}: {hint}; Slurm's own options go into options={{…}}")
        if value in (0, "0") and key == "cpus":
            continue
        wanted[_REQUIREMENTS[key]] = f"{_gib(value, where)}G" if key == "memory_gb" else value
    return chosen_by(wanted, where)


def _gib(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"{where}: memory_gb={value!r} is no number")
    return value
