"""What the jobs of a demo cost: a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
from rich.console import Console
from rich.table import Table

_COLUMNS = ("asset", "Slurm id", "state", "on", "queue wait", "elapsed", "CPU eff.", "memory", "added")
_TEXTS = {"asset", "state", "on"}


def show_costs(instance: dg.DagsterInstance, assets: Sequence[str], console: Console) -> None:
    """Show one line a job: what Slurm says of it, and what Slurmbus added."""
    table = Table(title="What each job cost, and what Slurmbus added to it")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _TEXTS else "right")
    for name in assets:
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        if event is None or event.asset_materialization is None:
            table.add_row(name, *["-"] * (len(_COLUMNS) - 1))
            continue
        metadata = event.asset_materialization.metadata
        found: dict[str, Any] = {key.removeprefix("slurmbus/"): value.value for key, value in metadata.items()}
        table.add_row(
            name,
            _text(found, "job_id", "{}"),
            _text(found, "state", "{}"),
            _text(found, "node_list", "{}"),
            _text(found, "queue_wait_seconds", "{:.0f} s"),
            _text(found, "elapsed_seconds", "{:.2f} s"),
            _text(found, "cpu_efficiency", "{:.0%}"),
            _text({**found, "mib": (found.get("peak_memory_bytes") or 0) / 2**20 or None}, "mib", "{:.0f} MiB"),
            _text(found, "added_seconds", "{:.2f} s"),
        )
    console.print(table)
    console.print(
        "added: the time of run() without that from Slurm's yes to the end of the payload; 'queue wait' isn't ours"
    )


def _text(found: dict[str, Any], name: str, form: str) -> str:
    return "-" if found.get(name) is None else form.format(found[name])
