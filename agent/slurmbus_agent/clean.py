"""``slurmbus-agent clean``: forget finished jobs by hand, or see what would be forgotten."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.config import AgentConfig
from slurmbus_agent.forgetting import Candidate, Forgetting, Forgotten, JobName
from slurmbus_agent.retention import Outcome, Wish
from slurmbus_agent.spool import FORGOTTEN, JOBS, Spool
from slurmbus_agent.spool_removal import Stopped
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import InvalidSetting

EXIT_NOT_ALL = 1

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = 1024.0
COLUMNS = ("JOB", "NAME", "STATE", "SIZE", "WHAT", "WHY")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Say what ``clean`` understands."""
    parser.add_argument("--dry-run", action="store_true", help="change nothing; show what would be forgotten")
    parser.add_argument(
        "--older-than", type=age, metavar="AGE", help="e.g. 3d, 12h, 30m: instead of what the configuration says"
    )
    parser.add_argument(
        "--outcome",
        choices=[*(kind.value for kind in Outcome), "all"],
        default="all",
        help="only jobs that ended like this (default: all)",
    )
    parser.set_defaults(log_level=logging.WARNING)


def age(text: str) -> float:
    """Read an age; argparse tells what is wrong with it."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write e.g. 3d, 12h, 30m or 90s")
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class _Row:
    name: JobName
    candidate: Candidate | None
    size: int
    what: str
    why: str

    def cells(self) -> tuple[str, ...]:
        record = self.candidate.record if self.candidate else None
        key, task = self.name
        size = _human(self.size)
        return (
            f"{key}.{task}",
            record.name if record else "",
            record.state if record else "",
            size,
            self.what,
            self.why,
        )


async def clean(config: AgentConfig, arguments: argparse.Namespace) -> int:
    """Do it, and print a table of what was or would be removed.

    Raises:
        InvalidSetting: there is no spool.
        BusUnreachable: without the bus nobody knows what may be forgotten.
    """
    spool = Spool(config.spool_root)
    if not (spool.root / JOBS).is_dir():
        raise InvalidSetting(f"spool: there is no spool at {spool.root}", hint="see 'spool' in the configuration")
    outcomes = frozenset(Outcome) if arguments.outcome == "all" else frozenset({Outcome(arguments.outcome)})
    async with Bus(config.bus_settings("clean")) as bus:
        forgetting = Forgetting(
            bus,
            config.site,
            spool,
            config.retention,
            in_use=lambda _: False,  # by another process, of which only settle_minutes knows
            guard=lambda: True,
            audit=Audit(spool.root / "audit.log"),
            steps=budgets.FORGET_CALLS_BY_HAND,
            patience=budgets.FORGET_PATIENCE_BY_HAND,
        )
        try:
            candidates = await forgetting.look(Wish(arguments.older_than, outcomes))
            if arguments.dry_run:
                _show(await asyncio.to_thread(_would, spool, candidates, forgetting))
                _show_rest(spool, candidates)
                return 0
            return await _carry_out(spool, candidates, forgetting)
        except Stopped:
            return EXIT_NOT_ALL
        finally:
            forgetting.close()


def _would(spool: Spool, candidates: Sequence[Candidate], forgetting: Forgetting) -> list[_Row]:
    rows = [
        _Row(name, None, spool.size(*name, FORGOTTEN, pace=forgetting.pace), "would go on", "forgetting it has begun")
        for name in spool.forgotten()
    ]
    rows += [
        _Row(one.name, one, spool.size(*one.name, pace=forgetting.pace), "would forget", one.verdict.why)
        for one in candidates
        if one.verdict.forget
    ]
    return rows


async def _carry_out(spool: Spool, candidates: Sequence[Candidate], forgetting: Forgetting) -> int:
    planned = {row.name: row for row in await asyncio.to_thread(_would, spool, candidates, forgetting)}
    done = await forgetting.forget(candidates)
    rows = []
    for name, row in planned.items():
        what = _came_to(name, done)
        rows.append(_Row(name, row.candidate, row.size, what, row.why))
    _show(rows)
    _show_rest(spool, candidates)
    if done.waiting:
        _say(
            f"{len(done.waiting)} jobs wait for the bus to forget them: the owner of the bus does that by itself while "
            "it runs; on the team's own bus run 'slurmbus clean' on the Dagster machine. Their folders go afterwards."
        )
    for obstacle in done.obstacles:
        _say(f"{obstacle.path} can't be removed: {obstacle.reason}")
    return EXIT_NOT_ALL if done.obstacles else 0


def _came_to(name: JobName, done: Forgotten) -> str:
    if name in done.removed:
        return "forgotten"
    return "waits for the bus" if name in done.waiting else "not yet"


def _show(rows: Sequence[_Row]) -> None:
    table = [COLUMNS, *(row.cells() for row in rows)]
    if sys.stdout.isatty():
        widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    else:
        lines = ["\t".join(line) for line in table]
    for line in lines:
        print(line.rstrip(" "))  # noqa: T201  # the command's own output
    _say(f"{len(rows)} jobs, {_human(sum(row.size for row in rows))}")


def _show_rest(spool: Spool, candidates: Sequence[Candidate]) -> None:
    """Tell what stays, and why."""
    for why, number in Counter(one.verdict.why for one in candidates if not one.verdict.forget).most_common():
        _say(f"kept: {number} jobs: {why}")
    for one in candidates:
        if one.verdict.forget and one.left:
            _say(f"left: {one.left}: the working directory of {one.name[0]}, outside the spool")
    for name in spool.folders()[1]:
        _say(f"left: {spool.root / JOBS / name}: this is no job's folder")


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _BYTES:
            return f"{size:.0f} {unit}"
        size /= _BYTES
    return f"{size:.1f} TiB"
