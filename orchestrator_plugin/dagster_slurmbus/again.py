"""A job that ran out of memory or time, again with more of it.

Dagster's own retries run a step again as it is; here the next job asks for more. Each attempt is a job of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import msgspec
from pydantic import Field, field_validator, model_validator

from dagster_slurmbus.metrics import MIB, allocated_gpus, allocated_memory
from dagster_slurmbus.outcomes import figures
from dagster_slurmbus.units import clock
from slurmbus.units import parse_memory_mib, parse_time_minutes
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import JobOptions, Record
from slurmbus_protocol.states import JobState


class _More(dg.Config):
    factor: float = Field(default=2.0, gt=1.0, description="By how much it grows, each time.")
    attempts: int = Field(default=2, ge=1, description="How often it is run again.")
    limit: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        for name in given if isinstance(given, Mapping) else ():
            if name not in cls.model_fields:
                raise ValueError(f"{name!r} is unknown; known: {', '.join(cls.model_fields)}")
        return given

    @field_validator("limit", mode="before")
    @classmethod
    def _limit_can_be_read(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, str):
            try:
                cls.parsed(text)
            except SlurmbusError as error:
                raise ValueError(str(error)) from error
        return text

    @classmethod
    def parsed(cls, limit: str | None) -> float:
        """Read the limit; without one there is none."""
        raise NotImplementedError

    def more(self, record: Record) -> JobOptions | None:
        """Give what the next job asks for; None when there is no more to be had, or nothing to start from."""
        raise NotImplementedError


class MoreMemory(_More):
    """What ``on_out_of_memory`` takes: run it again with more memory."""

    limit: str | None = Field(default=None, description='The most that is asked for, on each node: "64G".')

    @classmethod
    def parsed(cls, limit: str | None) -> float:
        """Read the limit as MiB."""
        return parse_memory_mib(limit, "limit") if limit is not None else math.inf

    def more(self, record: Record) -> JobOptions | None:
        """Give what the next job asks for."""
        options, nodes, limit = record.options, record.nodes or 1, self.parsed(self.limit)
        if options.all_memory:
            return None
        if options.mem_per_cpu_mib:
            cpus = (record.alloc_cpus or options.cpus_per_task or 1) / nodes
            name, old, most = "mem_per_cpu_mib", options.mem_per_cpu_mib, limit / cpus
        elif options.mem_per_gpu_mib:
            name, old, most = (
                "mem_per_gpu_mib",
                options.mem_per_gpu_mib,
                limit / max(1, allocated_gpus(record) // nodes),
            )
        else:
            had = options.mem_per_node_mib or (allocated_memory(record) or 0) // nodes // MIB
            name, old, most = "mem_per_node_mib", had, limit
        new = int(min(old * self.factor, most))
        return msgspec.structs.replace(options, **{name: new}) if new > old > 0 else None


class MoreTime(_More):
    """What ``on_timeout`` takes: run it again with a longer time limit."""

    limit: str | None = Field(default=None, description='The longest that is asked for: "1-00:00:00".')

    @classmethod
    def parsed(cls, limit: str | None) -> float:
        """Read the limit as minutes."""
        return parse_time_minutes(limit, "limit") if limit is not None else math.inf

    def more(self, record: Record) -> JobOptions | None:
        """Give what the next job asks for."""
        elapsed = figures(record).elapsed
        old = record.options.time_limit_minutes or math.ceil((elapsed or 0.0) / 60)
        new = int(min(math.ceil(old * self.factor), self.parsed(self.limit)))
        return msgspec.structs.replace(record.options, time_limit_minutes=new) if new > old > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What happens when a job ends in one of these ways; None: it fails."""

    on_out_of_memory: MoreMemory | None = None
    on_timeout: MoreTime | None = None

    def of(self, state: JobState) -> MoreMemory | MoreTime | None:
        """Give the rule for a final state."""
        if state is JobState.OUT_OF_MEMORY:
            return self.on_out_of_memory
        return self.on_timeout if state is JobState.TIMEOUT else None


NO_POLICY = Policy()
"""Nothing is run again."""


class Ladder:
    """The attempts of one call: what each asked for and how it ended.

    What an attempt needs to know of those before it stands in its launch handle, so a step that is killed and run
    again goes on where it was.

    Args:
        policy: when to try again.
        before: the attempts before the current one, as rows of a table; the last column names are ours.
    """

    def __init__(self, policy: Policy, before: list[dict[str, Any]] | None = None) -> None:
        self._policy = policy
        self.before = list(before or [])

    @property
    def number(self) -> int:
        """The current attempt, counted from 0."""
        return len(self.before)

    def more(self, record: Record) -> JobOptions | None:
        """Give what the next attempt asks for after this one has ended so; None when it isn't tried again."""
        rule = self._policy.of(record.state)
        if rule is None or sum(row["state"] == record.state.value for row in self.before) >= rule.attempts:
            return None
        return rule.more(record)

    def climb(self, row: dict[str, Any]) -> None:
        """Count the current attempt as one of those before."""
        self.before.append(row)


def changes(old: JobOptions, new: JobOptions) -> str:
    """Say what the next attempt asks for instead."""
    told = []
    for name, words, write in (
        ("mem_per_node_mib", "mem", lambda number: f"{number}M"),
        ("mem_per_cpu_mib", "mem_per_cpu", lambda number: f"{number}M"),
        ("mem_per_gpu_mib", "mem_per_gpu", lambda number: f"{number}M"),
        ("time_limit_minutes", "time_limit", clock),
    ):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            told.append(f"{words}={write(after)}" + (f" instead of {write(before)}" if before else ""))
    return " and ".join(told)


def options_of(content: Mapping[str, Any]) -> JobOptions:
    """Read what an attempt asked for from its launch handle."""
    return msgspec.convert(content, JobOptions)
