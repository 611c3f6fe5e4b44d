"""Where a job's options come from, and whose word counts.

Later ones win: the resource's queue, the asset's metadata (what it says for all sites, then for this one), the call
(its ``resource_requirements``, then its ``extra_slurm_opts``, then its ``options``), the run config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from dagster_slurmbus._compat import Context, assets_metadata
from dagster_slurmbus.queue_config import Options, SlurmQueueConfig, apart, chosen_by, merge_chosen
from dagster_slurmbus.run_config import SlurmRunConfig
from dagster_slurmbus.values import absolute, resolved, wrong
from slurmbus import job_options
from slurmbus.job_options import Chosen
from slurmbus.local import LOCAL_SITE
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import JobOptions

METADATA_KEY = "slurmbus/options"
"""The key of an asset's metadata under which its options stand; with ``/<site>`` after it, those for one site."""

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


@dataclass(frozen=True, slots=True)
class Asked:
    """What the job of a step asks for, all layers together."""

    options: JobOptions
    cwd: str | None
    """The folder to run in; None is one of the job's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What one call of ``run`` says about options."""

    options: Options | None = None
    extra_slurm_opts: Mapping[str, Any] | None = None
    resource_requirements: Mapping[str, Any] | None = None
    run_config: SlurmRunConfig | None = None

    cwd: str | None = None

    def over(self, queue: Options | None, context: Context, site: str | None, cwd: str | None = None) -> Asked:
        """Put everything together for the job of this step.

        Args:
            queue: the defaults of the site. On this machine its folder doesn't count, since it is one of the site.
            context: of the step.
            site: where the job runs; ``local`` is this machine.
            cwd: the client's own default for the folder to run in.

        Raises:
            dagster.Failure: a layer has an unknown key or a value that can't be used; the message says which layer.
        """
        call, run_config = self.options, self.run_config
        if run_config is None and isinstance(call, SlurmRunConfig):
            call, run_config = None, call
        defaults = _layer(queue, "the resource's queue")
        layers = (
            defaults if site != LOCAL_SITE else defaults._replace(cwd=None),
            _Layer({}, absolute(cwd, "cwd")),
            _of_assets(context, METADATA_KEY),
            _of_assets(context, f"{METADATA_KEY}/{site}"),
            _Layer(_required(self.resource_requirements)),
            _extra_slurm_opts(self.extra_slurm_opts),
            _layer(call, "options"),
            _Layer({}, absolute(resolved(self.cwd, "cwd"), "cwd")),
            _layer(run_config, "the run config"),
        )
        folders = [layer.cwd for layer in layers if layer.cwd is not None]
        return Asked(merge_chosen(*(layer.options for layer in layers)), folders[-1] if folders else None)

    @property
    def framework(self) -> str | None:
        """The framework that ``resource_requirements`` names."""
        named = (self.resource_requirements or {}).get(_FRAMEWORK)
        if named is not None and not isinstance(named, str):
            raise wrong(f"resource_requirements: framework is {named!r}: write its name, e.g. 'ray'")
        return named


class _Layer(NamedTuple):
    options: Chosen
    cwd: str | None = None


def _layer(given: Options | None, where: str) -> _Layer:
    if isinstance(given, SlurmQueueConfig):
        return _Layer(given.chosen(), absolute(resolved(given.cwd, "cwd"), f"{where}: cwd"))
    if isinstance(given, Mapping):
        options, cwd = apart(given, where)
        return _Layer(chosen_by(options, where), cwd)
    return _Layer(chosen_by(given, where))


def _of_assets(context: Context, key: str) -> _Layer:
    """Give what the metadata of the step's assets says; those that run together must agree."""
    together: Chosen = {}
    said_by: dict[str, str] = {}
    for asset, metadata in assets_metadata(context).items():
        given = metadata.get(key)
        if given is None:
            continue
        where = f"metadata {key!r} of asset {asset}"
        given = getattr(given, "value", given)  # dg.MetadataValue.json({…}) is understood, too
        if not isinstance(given, Mapping):
            raise wrong(f"{where} is {given!r}: write a mapping of options to values")
        options, cwd = _layer(given, where)
        for field, value in (options if cwd is None else {**options, "cwd": cwd}).items():
            if together.get(field, value) != value:
                raise wrong(
                    f"assets {said_by[field]} and {asset} run as one job, and their metadata {key!r} "
                    f"disagrees on {field}: {together[field]!r}, {value!r}"
                )
            together[field], said_by[field] = value, asset
    return _Layer(together, together.pop("cwd", None))


def _extra_slurm_opts(given: Mapping[str, Any] | None) -> _Layer:
    where = "extra_slurm_opts"
    options, cwd = apart(given or {}, where)
    try:
        read = {key: resolved(value, f"{where}: {key}") for key, value in options.items()}
        return _Layer(job_options.read_loosely(read, where), cwd)
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
