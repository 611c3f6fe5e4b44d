"""A user's own metrics of a finished job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_slurmbus.outcomes import Metadata
from slurmbus_protocol.messages import Record


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """What ``run(metrics=…)`` calls its function with.

    Attributes:
        record: the job's final record: options, starts, times, accounting.
        metadata: what the materialization has so far.
        outputs: the files that came back: name in the job's working directory -> path here.
    """

    record: Record
    metadata: Mapping[str, dg.MetadataValue[Any]]
    outputs: Mapping[str, Path]


OwnMetrics = Callable[[FinishedJob], Mapping[str, Any]]
"""Takes a finished job and gives further metadata: names with texts, numbers or ``dg.MetadataValue``s."""


def own_metadata(
    metrics: OwnMetrics | None,
    record: Record,
    outputs: Mapping[str, Path],
    metadata: Metadata,
    warn: Callable[[str], None],
) -> Metadata:
    """Call the user's function. The job is done: an error of the function is told, and never fails it."""
    if metrics is None:
        return {}
    try:
        given = metrics(FinishedJob(record, dict(metadata), dict(outputs)))
        # What Dagster can't show is an error here, not when the step ends.
        return dict(dg.AssetMaterialization("slurmbus", metadata=dict(given)).metadata)
    except Exception as error:  # noqa: BLE001 - whatever a user's function raises
        warn(f"metrics= raised {type(error).__name__}: {error}; the job has succeeded, and its own figures are there")
        return {}
