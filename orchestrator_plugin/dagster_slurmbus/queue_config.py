"""What a job asks Slurm for, as people write it, and how defaults and choices of one call come together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import msgspec
from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from dagster_slurmbus._compat import is_env_var
from dagster_slurmbus.values import resolved, wrong
from slurmbus.units import parse_memory_mib, parse_time_minutes
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import JobOptions

_COUNTS = ("nodes", "ntasks", "ntasks_per_node", "cpus")
_TEXTS = ("time_limit", "mem", "mem_per_cpu", "gpus_per_node")
_OPTIONS: dict[str, str] = {
    "cpus": "cpus_per_task",
    "time_limit": "time_limit_minutes",
    "mem": "mem_per_node_mib",
    "mem_per_cpu": "mem_per_cpu_mib",
}
_PARSERS: dict[str, Callable[[str, str], int]] = {
    "time_limit": parse_time_minutes,
    "mem": parse_memory_mib,
    "mem_per_cpu": parse_memory_mib,
}
_EXCLUSIVE: tuple[tuple[str, str], ...] = (("mem_per_node_mib", "mem_per_cpu_mib"),)


class SlurmQueueConfig(dg.Config):
    """What a job asks Slurm for. What isn't set is left to Slurm's own defaults; the meanings are those of sbatch(1).

    Values may be ``dg.EnvVar``. A field's value is checked when it is known: here, or when the job is made.
    """

    partition: str | None = Field(default=None, description="Partition, or several separated by commas.")
    account: str | None = Field(default=None, description="Account that the job is charged to.")
    qos: str | None = Field(default=None, description="Quality of service.")
    reservation: str | None = Field(default=None, description="Reservation to run in.")
    constraint: str | None = Field(default=None, description="Features that the nodes must have.")
    time_limit: str | None = Field(
        default=None, description='Longest run time: "00:10:00", "1-12:00:00", or a number of minutes.'
    )
    nodes: int | None = Field(default=None, description="Number of nodes.")
    ntasks: int | None = Field(default=None, description="Number of tasks.")
    ntasks_per_node: int | None = Field(default=None, description="Number of tasks on each node.")
    cpus: int | None = Field(default=None, description="CPUs for each task.")
    mem: str | None = Field(default=None, description='Memory on each node: "1G", "500M", or a number of MiB.')
    mem_per_cpu: str | None = Field(default=None, description="Memory for each CPU; excludes mem.")
    gpus_per_node: str | None = Field(default=None, description='GPUs on each node: "2" or "a100:2".')
    gres: str | None = Field(default=None, description='Generic resources on each node: "gpu:2,shard:1".')
    nodelist: str | None = Field(default=None, description="Nodes that must be among the job's.")
    exclude: str | None = Field(default=None, description="Nodes that must not be among the job's.")
    exclusive: bool | None = Field(default=None, description="Share the nodes with no other job.")
    requeue: bool | None = Field(
        default=None, description="Start again after a node failure or a preemption; the payload must bear that."
    )
    comment: str | None = Field(default=None, description="A comment of your own, for people.")

    @field_validator(*_TEXTS, mode="before")
    @classmethod
    def _readable(cls, value: Any, info: ValidationInfo) -> Any:
        if is_env_var(value) or value is None:
            return value
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        parse = _PARSERS.get(str(info.field_name))
        if parse is not None and isinstance(text, str):
            try:
                parse(text, str(info.field_name))
            except SlurmbusError as error:
                raise ValueError(str(error)) from error
        return text

    @field_validator(*_COUNTS, mode="wrap")
    @classmethod
    def _at_least_one(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        if is_env_var(value):  # Dagster puts it back; the plain check would see the number 0
            return value
        count = check(value)
        if count is not None and count < 1:
            raise ValueError(f"{count} is less than 1")
        return count

    @model_validator(mode="after")
    def _one_way_of_asking_for_memory(self) -> SlurmQueueConfig:
        if self.mem is not None and self.mem_per_cpu is not None:
            raise ValueError("mem and mem_per_cpu exclude each other: set one of them")
        return self

    def to_options(self) -> JobOptions:
        """Give these settings as the request carries them; ``dagster.Failure`` when a value can't be used."""
        return merge(self)

    def chosen(self) -> dict[str, Any]:
        """Give what is set, by the names and in the units of the request."""
        chosen: dict[str, Any] = {}
        for field in type(self).model_fields:
            value = resolved(getattr(self, field), field)
            if value is None:
                continue
            parse = _PARSERS.get(field)
            chosen[_OPTIONS.get(field, field)] = _parsed(parse, value, field) if parse else value
        return chosen


def _parsed(parse: Callable[[str, str], int], value: str, field: str) -> int:
    try:
        return parse(value, field)
    except SlurmbusError as error:
        raise wrong(str(error)) from error


Options = SlurmQueueConfig | JobOptions | Mapping[str, Any]
"""What ``run(options=…)`` takes: a config, a mapping with the same names, or the request's own struct."""


def merge(*layers: Options | None) -> JobOptions:
    """Put layers of options over each other; what a later one sets wins.

    Raises:
        dagster.Failure: a layer has an unknown key or a value that can't be used; the message names it.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer is None:
            continue
        chosen = _chosen(layer)
        for pair in _EXCLUSIVE:
            if any(name in chosen for name in pair):
                merged = {name: value for name, value in merged.items() if name not in pair}
        merged.update(chosen)
    try:
        return msgspec.convert(merged, JobOptions)
    except msgspec.ValidationError as error:
        raise wrong(f"options can't be used: {error}") from error


def _chosen(layer: Options) -> dict[str, Any]:
    if isinstance(layer, SlurmQueueConfig):
        return layer.chosen()
    if isinstance(layer, JobOptions):
        defaults = JobOptions()
        fields = msgspec.structs.asdict(layer)
        return {name: value for name, value in fields.items() if value != getattr(defaults, name)}
    for name in layer:
        if name not in SlurmQueueConfig.model_fields:
            close = difflib.get_close_matches(str(name), SlurmQueueConfig.model_fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(SlurmQueueConfig.model_fields)}"
            raise wrong(f"options has the unknown key {name!r}: {hint}")
    try:
        return SlurmQueueConfig(**layer).chosen()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'options'}: {one['msg']}" for one in error.errors())
        raise wrong(f"options can't be used: {problems}") from error
